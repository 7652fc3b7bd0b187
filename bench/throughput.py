"""Tokens per second of our server beside stock SGLang, both running, asked in turn.

``python -m bench.throughput`` gives medians and spreads over rounds; the machine is noisy, so read the ratios. Prefill
is the time of a batch of prompts on an empty cache with one new token each. Decode is counted while all requests of
the batch stream, between the last one's first token and the first one's last.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.data import random_prompts
from bench.common.server import Server, serve
from bench.common.table import print_table, write_json

SHAPES = ("512x1", "2048x1", "6144x1", "512x8", "2048x8", "6144x8")
QUICK = ("512x1", "2048x8")
STOCK = "stock torch_native"


def stream(server: Server, prompt: list[int], new_tokens: int) -> list[float]:
    """Moments at which a greedy request's tokens arrived."""
    moments: list[float] = []
    for now, meta in server.stream(prompt, new_tokens):
        moments += [now] * (meta["completion_tokens"] - len(moments))
    return moments


def measure(server: Server, context: int, batch: int, new_tokens: int, seed: int) -> dict[str, float]:
    """Prefill and decode tokens per second of one batch of prompts."""
    prompts = random_prompts(batch, context, context, seed)
    server.flush()
    start = time.monotonic()
    with ThreadPoolExecutor(batch) as pool:
        list(pool.map(lambda p: server.generate(p, 1), prompts))
        prefill = time.monotonic() - start
        moments = list(pool.map(lambda p: stream(server, p, new_tokens), prompts))
    begin, end = max(m[0] for m in moments), min(m[-1] for m in moments)
    tokens = sum(begin < t <= end for m in moments for t in m)
    return {"prefill": batch * context / prefill, "decode": tokens / (end - begin)}


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "throughput",
        __doc__,
        quick=f"one round of {' '.join(QUICK)}; two minutes",
        sizes={"rounds": 1, "shapes": QUICK},
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48, help="new tokens of a decode measurement")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="CONTEXTxBATCH")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    rows: list[dict[str, Any]] = []
    pool = ("--max-total-tokens", "60000")
    with serve(*pool) as ours, serve(*pool, stock=True) as stock:
        servers = {"leankv": ours, STOCK: stock}
        for context, batch in ([int(n) for n in shape.split("x")] for shape in args.shapes):
            speeds: dict[str, list[dict[str, float]]] = {name: [] for name in servers}
            for seed in tqdm(range(args.rounds), desc=f"context {context}, batch {batch}"):
                for name, server in servers.items():
                    speeds[name].append(measure(server, context, batch, args.tokens, seed))
            for what in ("prefill", "decode"):
                own, other = ([s[what] for s in speeds[name]] for name in servers)
                ratios = [a / b for a, b in zip(own, other, strict=True)]
                rows.append(
                    {
                        "what": what,
                        "context": context,
                        "batch": batch,
                        "leankv tok/s": statistics.median(own),
                        "stock tok/s": statistics.median(other),
                        "ratio": statistics.median(ratios),
                        "spread": f"{min(ratios):.2f}-{max(ratios):.2f}",
                    }
                )
            write_json(args.json, rows)
    print_table(rows, "SmolLM2 on this machine, beside stock SGLang torch_native")


if __name__ == "__main__":
    run(main)
