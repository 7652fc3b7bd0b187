"""What is timed on a GPU, the most telling first: the kernels' bench (bench.kernels), job by job."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import Any

import torch

import bench.common.checkout  # noqa: F401
from bench.gpu.jobs import Bench, Job
from bench.kernels.cases import SHAPES, Bundle
from bench.kernels.cases import Shape as Model
from bench.kernels.pages import held_bytes
from bench.kernels.prefill import prefill_rows
from bench.kernels.rows import Row, attend_rows, commit_rows, merge_rows, open_rows
from bench.kernels.timing import Setup, free_bytes
from leankv_kernels import Ops, get_ops

LLAMA, SMOL = SHAPES["Llama-3-8B"], SHAPES["SmolLM2"]
MIXES = ("k4v2", "k8v4", "mix")
ROUNDS = 7
HEADLINE = 1
"""Jobs of ``speed_jobs`` that are run before anything else."""


@cache
def _setup(bench: Bench) -> Setup:
    device = torch.device(bench.device)
    return Setup(device, bench.ops, ROUNDS, free_bytes(device), beside=_beside(bench.device))


def _beside(device: str) -> tuple[Ops, ...]:
    try:
        return (get_ops(device, "triton"),)
    except ValueError as error:
        print(f"not timed beside: {error}", flush=True)
        return ()


def _decode(bench: Bench, bundle: Bundle) -> list[Row]:
    """All mixes at once where memory allows, else one by one."""
    setup = _setup(bench)
    setup.budget = free_bytes(setup.device)
    if held_bytes(bundle, setup) <= setup.budget:
        return attend_rows([bundle], 1, setup)
    rows = []
    for mix in bundle.tiers:
        part = bundle._replace(tiers=(mix,))
        if held_bytes(part, setup) > setup.budget:
            gigabytes = f"{held_bytes(part, setup) / 1e9:.0f} GB of {setup.budget / 1e9:.0f}"
            setup.note(f"left out: {mix} at {part.batch} x {part.context}, which takes {gigabytes}")
            continue
        rows += attend_rows([part], 1, setup)
        _tidy()
    return rows


def _tidy() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def _job(bench: Bench, name: str, rows: Callable[[Setup], list[Row]]) -> Job:
    def run() -> dict[str, Any]:
        try:
            return {"rows": rows(_setup(bench)), "notes": list(_setup(bench).notes)}
        finally:
            _tidy()

    return Job(name, name, run)


def speed_jobs(bench: Bench) -> Iterator[Job]:
    """Decode of Llama-3-8B at 8 x 8k first; then by how much each says."""

    def decode(model: Model, batch: int, context: int, prefix: bool = False) -> Job:
        bundle = Bundle(model, context, batch, MIXES, prefix)
        name = f"{model.name} {batch} x {context // 1024}k{', one prefix' * prefix}"
        return _job(bench, name, lambda setup: _decode(bench, bundle))

    yield decode(LLAMA, 8, 8192)
    yield decode(LLAMA, 64, 8192)
    yield decode(SMOL, 8, 8192)
    yield _job(bench, "prefill of 2,048 over 8k", partial(prefill_rows, LLAMA, "mix", 8192, 2048))
    yield decode(LLAMA, 8, 32768)
    yield _job(bench, "commit of 2,048", partial(commit_rows, LLAMA, "mix"))
    yield decode(LLAMA, 32, 8192, prefix=True)
    yield _job(bench, "own pages, decode", partial(open_rows, LLAMA, 1, 8))
    yield _job(bench, "own pages, prefill", partial(open_rows, LLAMA, 128, 16))
    yield _job(bench, "merge", partial(merge_rows, LLAMA, 2048))
    seen = {(8, 8192), (64, 8192), (8, 32768)}
    for context, batch in product((8192, 2048, 32768, 131072), (1, 64, 8)):
        if (batch, context) not in seen:
            yield decode(LLAMA, batch, context)
    for name in ("Qwen2.5-7B", "Llama-3-70B", "Qwen2.5-0.5B"):
        yield decode(SHAPES[name], 8, 8192)
    yield decode(SMOL, 64, 8192)
    yield _job(bench, "prefill of 2,048 over 8k, SmolLM2", partial(prefill_rows, SMOL, "mix", 8192, 2048))
    yield _job(bench, "commit of 2,048, SmolLM2", partial(commit_rows, SMOL, "mix"))
