"""``python -m bench.cuda_budget``: what the machine code of the CUDA kernels leaves possible, without a GPU.

Every shipped unit is compiled; of the attention kernel's loop over pages the instructions of a whole page are counted,
and a scheduler of an H200 is modelled that runs them (``bench.gpu.model``). ``predicted_gbps`` is what issue slots and
pipes allow, memory always ready: below the memory's 4,800 GB/s it would bind.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import torch
from tqdm import tqdm

from bench.common.command import Parser, run
from bench.common.table import print_table, write_json
from bench.gpu.model import CLOCK_HZ, SCHEDULERS, cycles_per_page, pipe_of
from bench.gpu.sass import PageLoop, by_opcode, instructions
from leankv_kernels import RawPages, RecordLayout, RecordStore, build_plan, get_ops
from leankv_kernels.cuda.attend import SPLIT_TOKENS
from leankv_kernels.cuda.compiler import CAPABILITIES, SHARED_BYTES, CompileError, compile_unit
from leankv_kernels.cuda.emulated import EMULATOR, library
from leankv_kernels.cuda.shipped import MODELS, PAGE_SIZE, TIER_PAIRS, Heads, attend_unit, layout_of, shipped_units
from leankv_kernels.cuda.unit import Unit
from leankv_kernels.layout import HIGH, LOW, TierCounts

QUICK = ("SmolLM2-135M", "Llama-3-8B")
SPLIT_PAGES = SPLIT_TOKENS // PAGE_SIZE


def page_counts(layout: RecordLayout, group: int, tier: int) -> dict[str, float]:
    """What the emulator counts for a page of one tier and one KV head: products, bytes copied, wavefronts."""
    layout = RecordLayout(layout.page_size, 1, layout.head_dim, layout.high, layout.low, layout.near)
    store = RecordStore(layout, 1, SPLIT_PAGES, "cpu")
    ops, pages = get_ops("cpu", "cuda-emulated"), torch.arange(1, SPLIT_PAGES + 1)
    shape = (SPLIT_PAGES, layout.page_size, 1, layout.head_dim)
    key, value = (torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(2))
    tiers = torch.full((SPLIT_PAGES, 1, layout.page_size), tier, dtype=torch.uint8)
    ops.commit_pages(store, 0, pages, RawPages.whole(key, value), tiers, "hadamard")
    slots = torch.arange((SPLIT_PAGES + 2) * layout.page_size, dtype=torch.int32)[None] + layout.page_size
    plan = build_plan(torch.tensor([0]), [SPLIT_PAGES * layout.page_size], [1], slots, layout.page_size, 0)
    ops.attend_committed(torch.randn(1, group, layout.head_dim), store, 0, plan, 0.1, "hadamard")
    return {name: count / SPLIT_PAGES for name, count in EMULATOR.counts.items()}


def page_bytes(layout: RecordLayout, tier: int) -> int:
    """Bytes that a page of one tier has to be read of, for one KV head: scales, codes, centre."""
    full, none = (torch.full((1, layout.num_kv_heads), n) for n in (layout.page_size, 0))
    counts = TierCounts(full, none, none) if tier == HIGH else TierCounts(none, none, full)
    return int(layout.head_bytes(counts, torch.tensor([2]))[0, 0])


def resident_warps(unit: Unit, registers: int, capability: str) -> tuple[float, int]:
    """Warps of a scheduler that registers and shared memory allow, half a one where two of four have none, and the
    shared bytes of a block."""
    threads, shared, _ = (ctypes.c_int * 3).in_dll(library(unit, SHARED_BYTES[capability]), "attend_committed_facts")
    by_registers = 65536 // (threads * (-(-registers // 8) * 8))
    by_memory = (SHARED_BYTES[capability] + 1024) // (shared + 1024)
    return min(by_registers, by_memory) * threads / 32 / 4, shared


def attention_row(model: Heads, pair: tuple[str, str], tier: int, capability: str) -> dict[str, Any]:
    """One row of decode attention: a page of one tier, read by one query."""
    layout, unit = layout_of(model, pair), attend_unit(model, pair)
    cubin, reports = compile_unit(unit, capability)
    report = next(r for r in reports if r.kernel == "attend_committed")
    counts = page_counts(layout, model.group, tier)
    loop = PageLoop.of(instructions(cubin, "attend_committed"))
    copies = -(-int(counts["cp.async bytes"]) // 512) + 2
    parts = model.group // unit.shape[1]
    way = loop.path(round(counts["mma"] / parts), copies)
    body, per_round = loop.copy_loop()
    missing = max(0, copies - by_opcode(way)["LDGSTS"])
    code = way + body * (-(-missing // per_round) if per_round else 0)
    warps, shared = resident_warps(unit, report.registers, capability)
    nbytes, scale = page_bytes(layout, tier), SCHEDULERS * CLOCK_HZ / 1e9 / parts
    tensor = sum(pipe_of(x.opcode)[1] for x in code if x.opcode == "IMMA")
    return {
        "op": "attend_committed",
        "arch": f"sm_{capability}",
        "head_dim": model.head_dim,
        "group": model.group,
        "tiers": ",".join(pair) if pair[0] != pair[1] else pair[0],
        "block": layout.block_bytes,
        "page": "all high" if tier == HIGH else "all low",
        "registers": report.registers,
        "shared_bytes": shared,
        "spill_bytes": report.spill_bytes,
        "spill_accesses_per_page": sum(x.opcode in ("LDL", "STL") for x in code),
        "warps": round(warps, 2),
        "instructions_per_page": len(code),
        "bytes_per_page": nbytes,
        "bytes_per_instruction": round(nbytes / len(code), 1),
        "issue_gbps": round(nbytes / len(code) * scale) if capability == "90a" else "",
        "tensor_gbps": round(nbytes / tensor * scale) if capability == "90a" else "",
        # Of other GPUs neither clock nor schedulers are known here, so only bytes an instruction compare.
        "predicted_gbps": round(nbytes / cycles_per_page(code, max(1, int(warps))) * min(1.0, warps) * scale)
        if capability == "90a"
        else "",
    }


def other_rows(capability: str) -> list[dict[str, Any]]:
    """Registers and spills of every other kernel."""
    rows = []
    for unit in shipped_units():
        if unit.source != "attend":
            rows += [
                {
                    "op": report.kernel,
                    "arch": f"sm_{capability}",
                    "head_dim": unit.shape[0] if unit.shape else "",
                    "group": unit.shape[1] if unit.source == "open" else "",
                    "registers": report.registers,
                    "spill_bytes": report.spill_bytes,
                }
                for report in compile_unit(unit, capability)[1]
            ]
    return rows


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "cuda_budget",
        __doc__,
        quick=f"the shapes of {' and '.join(QUICK)} alone; half a minute",
        sizes={"models": QUICK},
    )
    parser.add_argument("--capability", default="90a", choices=CAPABILITIES)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="parts of names of shapes (default: all)")
    parser.add_argument("--others", action="store_true", help="the other kernels' registers too")
    parser.add_argument("--least-gbps", type=int, help="of 90a: fail where less is predicted for a head_dim of 128")
    return parser


def main() -> int:
    """Command line; 1 where less is predicted than asked for, 2 after an error."""
    parser = command_line()
    args = parser.parse_args()
    if args.least_gbps and args.capability != "90a":
        parser.error("--least-gbps is predicted for an H200, --capability 90a")
    chosen = [m for m in MODELS if not args.models or any(part.lower() in m.name.lower() for part in args.models)]
    if not chosen:
        print(f"error: --models takes parts of {', '.join(m.name for m in MODELS)}.", file=sys.stderr)
        return 2
    cases: dict[tuple[Unit, int], tuple[Heads, tuple[str, str], int]] = {}
    for model in chosen:
        for pair in TIER_PAIRS:
            for tier in (LOW, HIGH) if pair[0] != pair[1] else (HIGH,):
                cases.setdefault((attend_unit(model, pair), tier), (model, pair, tier))
    try:
        rows = [
            attention_row(model, pair, tier, args.capability)
            for model, pair, tier in tqdm(cases.values(), unit="kernel")
        ]
        others = other_rows(args.capability) if args.others else []
    except CompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(rows)
    if others:
        print_table(others)
    write_json(args.json, rows + others)
    slow = [r for r in rows if args.least_gbps and r["head_dim"] == 128 and r["predicted_gbps"] < args.least_gbps]
    for row in slow:
        print(f"error: group {row['group']} at {row['tiers']}: {row['predicted_gbps']} GB/s", file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    run(main)
