"""Tokens per second of our server beside stock SGLang, both running, asked in turn.

``python -m bench.throughput`` gives medians and spreads over rounds; the machine is noisy, so read the ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from bench.data import random_prompts
from bench.server import Server, serve
from bench.table import print_table, write_json

SHAPES = ("512x1", "2048x1", "512x8", "2048x8")


def _timed(server: Server, prompts: list[list[int]], new_tokens: int) -> float:
    start = time.monotonic()
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda p: server.generate(p, new_tokens), prompts))
    return time.monotonic() - start


def measure(server: Server, context: int, batch: int, new_tokens: int, seed: int) -> dict[str, float]:
    """Prefill and decode tokens per second: prompts first with one new token, then again with many on a warm cache."""
    prompts = random_prompts(batch, context, context, seed)
    server.flush()
    prefill = _timed(server, prompts, 1)
    first = _timed(server, prompts, 1)
    rest = _timed(server, prompts, 1 + new_tokens)
    return {"prefill": batch * context / prefill, "decode": batch * new_tokens / max(rest - first, 1e-9)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24, help="new tokens of a decode measurement")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="CONTEXTxBATCH")
    parser.add_argument("--json", metavar="FILE")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with serve("--max-total-tokens", "40000") as ours, serve("--max-total-tokens", "40000", stock=True) as stock:
        servers = {"leankv": ours, "stock torch_native": stock}
        for context, batch in ([int(n) for n in shape.split("x")] for shape in args.shapes):
            speeds: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in servers}
            for seed in tqdm(range(args.rounds), desc=f"context {context}, batch {batch}"):
                for name, server in servers.items():
                    for what, speed in measure(server, context, batch, args.tokens, seed).items():
                        speeds[name][what].append(speed)
            for what in ("prefill", "decode"):
                medians = {name: statistics.median(s[what]) for name, s in speeds.items()}
                ours_all = speeds["leankv"][what]
                rows.append(
                    {
                        "what": what,
                        "context": context,
                        "batch": batch,
                        "leankv tok/s": medians["leankv"],
                        "spread": f"{min(ours_all):.0f}-{max(ours_all):.0f}",
                        "stock tok/s": medians["stock torch_native"],
                        "ratio": medians["leankv"] / medians["stock torch_native"],
                    }
                )
    print_table(rows, "SmolLM2 on this machine, reference ops")
    write_json(args.json, rows)


if __name__ == "__main__":
    main()
