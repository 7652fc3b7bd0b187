"""Would matrix products of always the same number of rows keep AMX, on a CPU? ``python -m bench.rows`` measures it.

A hit equals its miss where a row of a product has the same bits in any company. oneDNN's AMX kernels choose their sums
by the number of rows, and so does its emulation of bfloat16 on a CPU without AVX-512 BF16, so servers run without
either. Products cut into blocks of one size, the last padded, are another way. For each instruction set and size of
block: ``outputs_differ`` between a row's products in different company, and milliseconds of one layer's products by
rows. A CPU with AVX-512 BF16 and without AMX has one instruction set to measure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from functools import partial
from typing import Any

from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.processes import output_of
from bench.common.table import print_table, write_json
from leankv_sglang.environment import ROW_STABLE_ISA, row_stable_isa
from leankv_sglang.errors import LeanKVError

BLOCKS = (0, 16, 32, 64)
"""Rows of a product; 0 leaves them together."""
ROWS = (1, 8, 64, 512)
PRODUCTS = {"SmolLM2-135M": ((960, 576), (3072, 576)), "Qwen2.5-0.5B": ((1152, 896), (9728, 896))}
"""Outputs and inputs: a layer's queries, keys and values; gate and up."""
COMPANIES = ((0, 1), (0, 2), (5, 17), (0, 31), (7, 64), (100, 219))
"""First row and how many."""


def instruction_sets() -> dict[str, str]:
    """What servers cap oneDNN at on this CPU, and no cap where that is another thing."""
    with open("/proc/cpuinfo") as lines:
        has_amx = "amx_bf16" in lines.read()
    served = row_stable_isa()
    capped = has_amx or served != ROW_STABLE_ISA
    return {"all": "DEFAULT", "as served": served} if capped else {"as served": served}


def product(x: Any, weight: Any, block: int) -> Any:
    """``x @ weight.T`` in products of ``block`` rows, the last one padded with zeros; in one for 0."""
    from torch import cat
    from torch.nn.functional import linear, pad

    if not block:
        return linear(x, weight)
    padded = pad(x, (0, 0, 0, -len(x) % block))
    return cat([linear(part, weight) for part in padded.split(block)])[: len(x)]


def _products(x: Any, weights: list[Any], block: int) -> list[Any]:
    return [product(x, weight, block) for weight in weights]


def _differ(block: int, outputs: int, inputs: int) -> int:
    import torch

    torch.manual_seed(0)
    weight, x = (torch.randn(outputs, inputs) * 0.05).bfloat16(), torch.randn(320, inputs).bfloat16()
    whole = product(x, weight, block)
    parts = [slice(first, first + count) for first, count in COMPANIES]
    return sum(int((product(x[rows], weight, block) != whole[rows]).sum()) for rows in parts)


def rows_of(model: str, repeats: int) -> list[dict[str, Any]]:
    """A row for each size of block, under the instruction set of this process."""
    import torch

    from bench.kernels.timing import Contestant, Setup, measure
    from leankv_kernels import get_ops

    setup = Setup(torch.device("cpu"), get_ops("cpu"), repeats, 0)
    shapes = PRODUCTS[model]
    weights = [torch.randn(shape).bfloat16() for shape in shapes]
    rows: list[dict[str, Any]] = [
        {"block": block or "none", "outputs_differ": sum(_differ(block, *s) for s in shapes)} for block in BLOCKS
    ]
    for count in tqdm(ROWS, desc=model, unit="size"):
        x = torch.randn(count, shapes[0][1]).bfloat16()
        contestants = [Contestant(str(block), [partial(_products, x, weights, block)]) for block in BLOCKS]
        for row, took in zip(rows, measure(contestants, setup).values(), strict=True):
            row[f"ms_{count}_rows"] = round(1e3 * statistics.median(took), 3)
    return rows


def _in_a_process(instructions: str, model: str, repeats: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "bench.rows", "--inside", "--models", model, "--repeats", str(repeats)]
    code, said = output_of(command, {"ONEDNN_MAX_CPU_ISA": instructions})
    if code:
        raise LeanKVError(f"{model} could not be measured with {instructions}; the reason is above.")
    rows: list[dict[str, Any]] = json.loads(said)
    return rows


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "rows",
        __doc__,
        quick="3 repeats, not 9; half a minute",
        sizes={"repeats": 3},
    )
    parser.add_argument("--models", nargs="+", choices=list(PRODUCTS), default=list(PRODUCTS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    if args.inside:
        json.dump(rows_of(args.models[0], args.repeats), sys.stdout)
        return
    rows = [
        {"model": model, "instructions": name, **row}
        for model in args.models
        for name, value in instruction_sets().items()
        for row in _in_a_process(value, model, args.repeats)
    ]
    print_table(rows, "Products in blocks of rows")
    write_json(args.json, rows)


if __name__ == "__main__":
    run(main)
