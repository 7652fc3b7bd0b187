"""What keeping books costs in a running server: seconds of memory management beside seconds of the model.

``python -m bench.overhead`` starts a server with a probe in it, with a pool large enough and with one that is always
full, and lets it prefill and then decode. Everything that reserves, trues up, trims, frees, matches and locks counts.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.data import random_prompts
from bench.common.server import Server, serve
from bench.common.table import print_table, write_json

LARGE = 60_000
"""Tokens of a pool that is never full."""


def _read(probe: Path) -> dict[str, float]:
    time.sleep(1.2)
    found: dict[str, float] = json.loads(probe.read_text())
    return found


def measure(server: Server, probe: Path, name: str, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
    """Prefill all prompts, then decode after each of them, eight at a time."""
    rows = []
    for phase, tokens in (("prefill", 1), ("decode", new_tokens)):
        before = _read(probe)
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda p, n=tokens: server.generate(p, n), prompts)
            list(tqdm(answers, desc=f"{name}: {phase}", total=len(prompts), unit="prompt"))
        after = _read(probe)
        spent = {k: after[k] - before.get(k, 0.0) for k in after}
        model = spent.get("prefill", 0.0) + spent.get("decode", 0.0)
        most = sorted(
            (v, k) for k, v in spent.items() if k not in ("managing", "prefill", "decode") and "steps" not in k
        )
        rows.append(
            {
                "pool": name,
                "phase": phase,
                "model s": model,
                "managing s": spent["managing"],
                "share": spent["managing"] / model,
                "most of it": ", ".join(f"{k} {1000 * v:.0f} ms" for v, k in most[:-4:-1]),
            }
        )
    return rows


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "overhead",
        __doc__,
        quick="12 prompts up to 1,000 tokens, 32 new tokens, the full pool of 3,072; about two minutes",
        sizes={"prompts": 12, "longest": 1000, "tokens": 32, "full": 3072},
    )
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--longest", type=int, default=2500, help="longest prompt in tokens")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens")
    parser.add_argument("--full", type=int, default=12_288, help="tokens of the pool that is always full")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    rows = []
    for name, units in (("large pool", LARGE), ("full pool", args.full)):
        prompts = random_prompts(args.prompts, 400, args.longest, seed=units)
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.json"
            path = os.pathsep.join([str(Path(__file__).parent / "common" / "probe"), os.environ.get("PYTHONPATH", "")])
            with serve(
                "--max-total-tokens", str(units), env={"LEANKV_PROBE": str(probe), "PYTHONPATH": path}
            ) as server:
                rows += measure(server, probe, name, prompts, args.tokens)
    print_table(rows, "Memory management beside the model's own time")
    write_json(args.json, rows)


if __name__ == "__main__":
    run(main)
