"""Compiles the Triton kernels for a GPU that need not be there, and prints what each takes.

``python -m bench.kernels.triton_aot`` [--models ...] [--tiers HIGH[,MID],LOW ...] [--queries N] [--json PATH]

The ops run on the CPU with their launches written down instead of started, so what is compiled is what a decode step of
the model would launch. Registers and spills are ptxas's own words; spills are what to look for.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import bench.common.checkout  # noqa: F401
from bench.common.table import print_table, write_json
from bench.kernels.cases import PAGE, ROTATION, SHAPES, WINDOW, Shape
from leankv_kernels import HIGH, TIERS, RawPages, RecordLayout, RecordStore, build_plan
from leankv_kernels.triton import attend_committed, attend_open, commit_pages, merge_states
from leankv_kernels.triton.config import INTERPRETED

MODELS = ("SmolLM2", "Qwen2.5-0.5B", "Llama-3-8B")
FORMS = ("k8v4,k4v2", "k4v2,k4v2", "k8v4,k4v4,k4v2")
CONTEXT_PAGES = 9
MODULES = ("attend_committed", "attend_open", "commit", "merge")
_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.uint8: "u8",
    torch.int32: "i32",
    torch.int64: "i64",
}
Launches = list[tuple[Any, tuple[Any, ...], dict[str, Any]]]


def recorded(shape: Shape, tiers: str, dtype: torch.dtype, queries: int) -> Launches:
    """Every launch of one request's forward, behind a context of whole pages, and of a commit."""
    launches: Launches = []

    def record(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], options: dict[str, Any]) -> None:
        launches.append((kernel, args, options))

    high, *mid, low = (TIERS[name] for name in tiers.split(","))
    layout = RecordLayout(PAGE, shape.kv_heads, shape.head_dim, high, low, mid=mid[0] if mid else None)
    store = RecordStore(layout, 1, CONTEXT_PAGES + 2, "cpu")
    slots = torch.arange((CONTEXT_PAGES + 2) * PAGE, dtype=torch.int32)[None] + PAGE
    plan = build_plan(torch.tensor([0]), [CONTEXT_PAGES * PAGE + 1], [queries], slots, PAGE, WINDOW)
    q = torch.zeros(queries, shape.query_heads, shape.head_dim, dtype=dtype)
    page = torch.zeros(plan.num_tiles, PAGE, shape.kv_heads, shape.head_dim, dtype=dtype)
    scores = torch.zeros(plan.num_tiles, shape.query_heads, PAGE, dtype=torch.int32)
    by_token = torch.full((1, shape.kv_heads, PAGE), HIGH, dtype=torch.uint8)
    patches = [mock.patch(f"leankv_kernels.triton.{module}.launch", record) for module in MODULES]
    for patch in patches:
        patch.start()
    try:
        own = attend_open(q, RawPages(page, page, scores, plan.tile_range), plan, shape.scale)
        past = attend_committed(q, store, 0, plan, shape.scale, ROTATION)
        merge_states(*own, *past)
        commit_pages(store, 0, torch.tensor([1]), RawPages.whole(page[:1], page[:1]), by_token, ROTATION)
    finally:
        for patch in patches:
            patch.stop()
    return launches


def source_of(kernel: Any, args: tuple[Any, ...]) -> ASTSource:
    """What the just-in-time compiler would be given for these arguments."""
    signature, constants, attributes = {}, {}, {}
    for i, (param, arg) in enumerate(zip(kernel.params, args, strict=True)):
        if param.is_constexpr or (isinstance(arg, int) and arg == 1):
            signature[param.name] = "constexpr"
            constants[param.name] = arg
        elif isinstance(arg, Tensor):
            signature[param.name] = "*" + _TYPES[arg.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(arg, int):
            signature[param.name] = "i32" if abs(arg) < 1 << 31 else "i64"
            if arg % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[param.name] = "fp32"
    return ASTSource(kernel, signature, constants, attributes)


def measured(ptx: str, arch: str, fusion: bool) -> dict[str, int]:
    """Registers per thread, and bytes spilled, as ptxas reports them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={arch}", str(path), "-o", f"{folder}/cubin"]
        said = subprocess.run([*command, *([] if fusion else ["--fmad=false"])], capture_output=True, text=True)
    if said.returncode:
        raise RuntimeError(f"ptxas failed: {said.stderr.strip()}")

    def number(pattern: str) -> int:
        return sum(int(n) for n in re.findall(pattern, said.stderr))

    return {"registers": number(r"Used (\d+) registers"), "spilled": number(r"(\d+) bytes spill stores")}


def compiled(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], capability: int) -> dict[str, Any]:
    """A row of the table.

    Raises:
        RuntimeError: where ptxas refuses what Triton made.
    """
    made = triton.compile(source_of(kernel, args), target=GPUTarget("cuda", capability, 32), options=options)
    arch = re.search(r"\.target (\S+)", made.asm["ptx"])
    assert arch
    return {
        "kernel": made.metadata.name,
        "warps": options["num_warps"],
        "stages": options["num_stages"],
        **measured(made.asm["ptx"], arch[1].rstrip(","), options["enable_fp_fusion"]),
        "shared": made.metadata.shared,
        "cubin": len(made.asm["cubin"]),
    }


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Compiles, prints and saves; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS, choices=SHAPES)
    parser.add_argument("--tiers", nargs="+", default=FORMS, metavar="HIGH[,MID],LOW")
    parser.add_argument("--queries", type=int, default=1, help="of the forward; 1 is a decode step")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--capability", type=int, default=90, help="compute capability, such as 90 for Hopper")
    parser.add_argument("--json", metavar="PATH")
    args = parser.parse_args(argv)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET is set: what the interpreter runs cannot be compiled")
    rows = []
    for name in args.models:
        for tiers in args.tiers:
            for kernel, values, options in recorded(SHAPES[name], tiers, getattr(torch, args.dtype), args.queries):
                row = {"model": name, "tiers": tiers, "queries": args.queries}
                rows.append(row | compiled(kernel, values, options, args.capability))
    print_table(rows, f"Triton kernels compiled for sm_{args.capability}")
    write_json(args.json, rows)
    return rows


if __name__ == "__main__":
    main()
