"""Decode attention over compressed pages beside dense bf16 attention, and the other ops: ``python -m bench.kernels``.

Everything is cold, as in a model that touches each layer's cache once per step: calls rotate over layers until at
least four times the last cache has passed, for us and for the dense baselines alike. The pages of a request lie in
the pool in random order, as in a server that has run for long, and layers were committed in turn, a chunk of 16 pages
at a time; ``--scatter-blocks`` scatters the blocks inside records as well. Contestants take turns, round by round, and
ratios are medians of the rounds' ratios. Bytes are those a call has to read: headers, far views, the last page's near
part.

Mixes of tiers: k8v4 and k4v2 are single tiers; ``mix`` has 25% high (k8v4), 65% low (k4v2) and 10% pruned tokens;
``skew`` keeps every token in one head of three and a tenth in the others, ``balanced`` as many in all, spread evenly.

``cascade`` is decode of requests that share a prefix, on CPUs: its pages read once for all, against once for each.
``prefix``, on GPUs, is the same beside dense attention over the same shared pages, ``prefill`` all that attention does
for a chunk of a prompt behind a context.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch

import bench.common.checkout  # noqa: F401
from bench.common.command import Parser, run
from bench.common.plot import save_plot
from bench.common.table import print_table, write_json
from bench.kernels.cascade import BATCH, PREFIX, TAILS, TIERS, cascade_rows
from bench.kernels.cases import MIXES, PAGE, SHAPES, Bundle, Shape, packed
from bench.kernels.pages import held_bytes
from bench.kernels.plot import plot_roofline
from bench.kernels.prefill import prefill_rows
from bench.kernels.rows import Row, attend_rows, commit_rows, merge_rows, open_rows
from bench.kernels.timing import Setup, free_bytes, progress
from leankv_kernels import get_ops

SMALL, LARGE = SHAPES["SmolLM2"], SHAPES["Llama-3-8B"]
SINGLE, ALL = ("k8v4", "k4v2"), ("k8v4", "k4v2", "mix", "skew", "balanced")
LINE = tuple(1024 << i for i in range(8))
BATCHES = (1, 4, 16, 64, 256)
SPIN = "GOMP_SPINCOUNT"
OPS = ("decode", "cascade", "prefix", "extend", "prefill", "open", "commit", "merge")
PREFIX_BATCH, PREFIX_TOKENS, CHUNK = 32, 8192, 2048


def size(text: str) -> int:
    """A number of tokens, such as 8192 or 8k."""
    return int(text[:-1]) * 1024 if text.endswith("k") else int(text)


def decode_sets(args: argparse.Namespace, cuda: bool) -> Iterator[list[Bundle]]:
    """Sets of bundles to measure in the same rounds, if memory allows."""
    if args.shapes or args.contexts or args.batches or args.tiers:
        for shape in args.shapes or SHAPES:
            for batch in args.batches or [8]:
                tiers = tuple(args.tiers or SINGLE)
                yield [Bundle(SHAPES[shape], context, batch, tiers) for context in args.contexts or [8192]]
        return
    if args.quick:
        yield from ([Bundle(shape, 8192, 8, ALL)] for shape in (SMALL, LARGE))
        return
    for context in (8192, 32768):
        for batch in (8, 64) if cuda else (8,):
            for shape in SHAPES.values():
                yield [Bundle(shape, context, batch, ALL if shape in (SMALL, LARGE) else SINGLE)]
    for shape in (SMALL, LARGE):
        yield [Bundle(shape, context, 1, ("k4v2",)) for context in LINE]
        if cuda:
            yield from ([Bundle(shape, 8192, batch, SINGLE)] for batch in BATCHES)


def attend_committed_rows(sets: Iterable[list[Bundle]], queries: int, setup: Setup) -> Iterator[list[Row]]:
    """The rows of every set, noting what does not fit into memory."""
    for bundles in sets:
        groups, notes = packed(bundles, lambda bundle: held_bytes(bundle, setup), setup.budget)
        for note in notes:
            setup.note(note)
        yield from (attend_rows(group, queries, setup) for group in groups)


def measured(args: argparse.Namespace, setup: Setup) -> Iterator[list[Row]]:
    """All rows that the command line asks for, as they come."""
    sets = list(decode_sets(args, setup.device.type == "cuda"))
    if "decode" in args.ops:
        yield from attend_committed_rows(sets, 1, setup)
    shapes: list[Shape] = [SHAPES[name] for name in args.shapes] if args.shapes else [SMALL, LARGE]
    if "cascade" in args.ops and setup.device.type == "cpu":
        for shape in shapes[:1] if args.quick else shapes:
            for context in args.contexts or [PREFIX]:
                for tail in TAILS:
                    yield cascade_rows(shape, context, tail, (args.batches or [BATCH])[0], args.tiers or TIERS, setup)
    if "extend" in args.ops:
        context = max(args.contexts) if args.contexts else 8192
        extends = [[Bundle(shape, context, 1, tuple(args.tiers or ("k8v4", "k4v2")))] for shape in shapes]
        yield from attend_committed_rows(extends, PAGE, setup)
    if "prefix" in args.ops and setup.device.type == "cuda":
        tiers = tuple(args.tiers or ("k8v4", "k4v2"))
        batch, tokens = (args.batches or [PREFIX_BATCH])[0], max(args.contexts or [PREFIX_TOKENS])
        yield from attend_committed_rows([[Bundle(shape, tokens, batch, tiers, True)] for shape in shapes], 1, setup)
    for shape in shapes:
        if "prefill" in args.ops and setup.device.type == "cuda":
            for tiers_name in args.tiers or ("mix",):
                yield prefill_rows(shape, tiers_name, max(args.contexts or [PREFIX_TOKENS]), CHUNK, setup)
        if "open" in args.ops:
            yield open_rows(shape, 1, 8, setup)
            yield open_rows(shape, PAGE, 16, setup)
        if "commit" in args.ops:
            yield commit_rows(shape, "mix", setup)
        if "merge" in args.ops:
            yield merge_rows(shape, 2048, setup)


def shown(row: Row) -> dict[str, Any]:
    """A row of the terminal's table."""
    ratio, limit = row["ratio_dense"], row["ratio_limit"]
    return {
        **{name: row[name] for name in ("op", "shape", "tiers", "context", "batch")},
        "MB": f"{row['bytes'] / 1e6:.2f}",
        "ms": f"{row['ms']:.3f}",
        "GB/s": f"{row['gbps']:.2f}",
        "% of read": f"{100 * row['of_bandwidth']:.0f}",
        "x dense": f"{ratio:.2f}" if ratio else "",
        "of limit": f"{limit:.2f}" if limit else "",
        "ms spread": f"{row['ms_low']:.3f}-{row['ms_high']:.3f}",
        "baseline": f"{row['dense']} {row['dense_ms']:.3f} ms" if ratio else "",
    }


def summary(rows: list[Row], setup: Setup) -> Iterator[str]:
    """The figures that decide, one sentence each."""
    decode = {(r["shape"], r["tiers"], r["context"], r["batch"]): r for r in rows if r["op"] == "attend_committed"}
    for (shape, tiers, context, batch), row in decode.items():
        where = f"{shape} {tiers} at {context // 1024}k, batch {batch}"
        if batch == 8 and tiers in SINGLE and shape in (SMALL.name, LARGE.name):
            spread = f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}"
            share = f"byte ratio {row['byte_ratio']:.2f}, {100 * row['of_bandwidth']:.0f}% of read bandwidth"
            yield f"{where}: {row['ratio_dense']:.2f}x dense ({spread}), {share}"
        even = decode.get((shape, "balanced", context, batch))
        if tiers == "skew" and even:
            took, read = (row[what] / even[what] for what in ("ms", "bytes"))
            yield f"{where}, against balanced: {took:.2f}x the time at {read:.2f}x the bytes"
    for name in SHAPES:
        line = [r for (s, t, c, b), r in decode.items() if (s, t, b) == (name, "k4v2", 1) and c >= 4096]
        if len(line) > 1:
            costs = [r["ns_per_byte"] for r in line]
            contexts = f"{line[0]['context'] // 1024}k to {line[-1]['context'] // 1024}k"
            yield f"{name} k4v2, batch 1, {contexts}: ns per byte max / min {max(costs) / min(costs):.2f}"
    for row in rows:
        if "plan_us" in row:
            what = f"{row['shape']} {row['tiers']}, {row['op']}, {row['batch']} requests at {row['context'] // 1024}k"
            spread = f"{row['ratio_low']:.2f}-{row['ratio_high']:.2f}"
            plan = f"planning takes {row['plan_us']:.0f} us, {row['plain_plan_us']:.0f} without"
            yield f"{what}: {row['ratio_dense']:.2f}x ({spread}) of reading the prefix for each; {plan}"
    errors = [r["error"] for r in rows if "error" in r]
    if errors:
        yield f"largest error against the reference: {max(errors):.1e}"
    reads = [r["bandwidth_gbps"] for r in rows]
    moved = "copy" if setup.device.type == "cuda" else "read"
    yield f"measured {moved} bandwidth: {min(reads):.4g} to {max(reads):.4g} GB/s over the run"
    if max(setup.others) > 0.1:
        yield f"other programs took up to {max(setup.others):.1f} cores meanwhile: measure again on a quiet machine"
    yield machine(setup)


def machine(setup: Setup) -> str:
    """What it ran on."""
    if setup.device.type == "cuda":
        return f"{torch.cuda.get_device_name(setup.device)}, torch {torch.__version__}, backend {setup.ops.name}"
    from leankv_kernels import cpu

    threads = f"{torch.get_num_threads()} threads, GOMP_SPINCOUNT {os.environ[SPIN]}"
    return f"{platform.machine()}, {cpu.isa()}, {threads}, torch {torch.__version__}, backend {setup.ops.name}"


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "kernels",
        __doc__,
        quick="the most telling rows, 5 rounds; a minute",
        sizes={"rounds": 5},
        plot=True,
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--backend", default="auto", help="of our ops; auto is the device's best")
    parser.add_argument("--beside", nargs="+", default=[], metavar="BACKEND", help="others, timed in the same rounds")
    parser.add_argument("--ops", nargs="+", choices=OPS, help="default: all, or decode where rows are chosen")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--contexts", nargs="+", type=size, metavar="TOKENS", help="multiples of 128, such as 8k")
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--tiers", nargs="+", choices=MIXES)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--scatter-blocks", action="store_true", help="records' blocks anywhere in the pool")
    return parser


def main() -> None:
    """Command line."""
    parser = command_line()
    args = parser.parse_args()
    chosen = args.shapes or args.contexts or args.batches or args.tiers
    args.ops = args.ops or (("decode",) if chosen else OPS)
    if any(context < PAGE or context % PAGE for context in args.contexts or []):
        parser.error(f"contexts are multiples of {PAGE}")
    if SPIN not in os.environ:
        # What the server runs with; OpenMP reads it once, when torch loads it.
        os.execve(sys.executable, [sys.executable, "-m", "bench.kernels", *sys.argv[1:]], os.environ | {SPIN: "0"})
    device = torch.device(args.device)
    beside = tuple(get_ops(device, name) for name in args.beside)
    setup = Setup(device, get_ops(device, args.backend), args.rounds, free_bytes(device), args.scatter_blocks, beside)
    if device.type == "cuda":
        from bench.kernels.dense_triton import check

        setup.note(f"the Triton baseline's error against torch: {check(device):.1e}")
    rows: list[Row] = []
    for found in progress(measured(args, setup), "measured"):
        rows += [row | {"machine": machine(setup)} for row in found]
        write_json(args.json, rows)
    print_table([shown(row) for row in rows], "Attention over compressed pages")
    for line in summary(rows, setup):
        print(line)
    for note in setup.notes:
        print(note)
    save_plot(lambda file: plot_roofline(rows, file, machine(setup)), args.plot)


if __name__ == "__main__":
    run(main)
