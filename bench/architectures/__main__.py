"""Which architectures are served, and how well? ``python -m bench.architectures`` asks tiny random models of each.

Every model is served by stock SGLang and by LeanKV at 8 bits for keys and values, where nothing is pruned. LeanKV's
answers must not depend on the cache, the batch or chunks, and both are held to transformers in float32, whose own
error in bfloat16 is the measure. Models: tests/models_served.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from bench.architectures.rows import Row, markdown, row, shown, unequal, verdict
from bench.architectures.systems import SYSTEMS, Fleet
from bench.common.command import Parser, run
from bench.common.table import print_table, write_json
from leankv_sglang.errors import LeanKVError
from tests.e2e.forked import Zygote
from tests.models_served import MODELS

QUICK = ["llama", "llama-head80", "qwen3", "gemma2", "gpt-neox", "mixtral"]


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "architectures", __doc__, quick=f"{len(QUICK)} architectures; under two minutes", sizes={"only": QUICK}
    )
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,...", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/models.md has it")
    parser.add_argument("--logs", metavar="FOLDER", help="keep what servers print")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    names: list[str] = args.only or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        raise LeanKVError(f"--only takes names of --help, not {', '.join(unknown)}.")
    rows: list[Row] = []
    zygote = Zygote()
    try:
        with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(len(SYSTEMS)) as pool:
            logs = Path(args.logs or scratch)
            logs.mkdir(parents=True, exist_ok=True)
            fleet = Fleet(zygote, logs)
            for name in (bar := tqdm(names, unit="model", disable=None)):
                bar.set_description(name)
                rows.append(row(name, MODELS[name], Path(scratch) / name, fleet, pool))
                tqdm.write("  ".join(f"{k}: {v}" for k, v in _short(rows[-1]).items()))
                write_json(args.json, rows)
    finally:
        zygote.stop()
    if args.markdown:
        print(markdown(rows))
    else:
        print_table([shown(one) for one in rows], "Architectures")
    print(verdict(rows))
    if parted := unequal(rows):
        raise SystemExit(f"Answers differ from their misses: {', '.join(parted)}.")


def _short(one: Row) -> Row:
    found = {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in shown(one).items()}
    return found | {"seconds": one["seconds"]}


if __name__ == "__main__":
    run(main)
