"""What is the Triton backend's own: how work is cut changes no bit, nothing asks the device, refusals, compilation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from leankv_kernels import RecordStore, get_ops
from tests.kernels.cases import Case, plan_of, simple, store_with
from tests.kernels.draws import INTERPRETED, generator, small_layout
from tests.kernels.driver import Method
from tests.kernels.kernelutil import TRITON, Backend, backend_named, raw_pages

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="session", params=TRITON)
def triton(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """The Triton backend where it can run."""
    with backend_named(request.param) as backend:
        yield backend


def long_context(backend: Backend, pages: int, group: int = 2) -> tuple[Case, RecordStore]:
    """Pages with tokens of every tier."""
    case = replace(simple(), dtype=torch.float32, device=backend.device, group=group)
    tiers = torch.randint(0, 3, (pages, 2, 32), generator=generator(0), dtype=torch.uint8)
    return case, store_with(case, tiers, calm=True)


def assert_equal(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert bool(got[0].isfinite().all())


@pytest.mark.parametrize("queries", [1, 9])
def test_one_program_for_all_splits_or_one_for_each(
    triton: Backend, monkeypatch: pytest.MonkeyPatch, queries: int
) -> None:
    """Large batches write no partial results; their bits are those of a request alone."""
    pages = 10 if INTERPRETED else 18
    case, store = long_context(triton, pages)
    tokens, plan = case.tokens(queries, 1), plan_of(case, queries, before=pages)
    got = []
    for enough in (1, 1 << 30):
        monkeypatch.setattr(import_module("leankv_kernels.triton.attend_committed"), "ENOUGH_PROGRAMS", enough)
        got.append(triton.ops.attend_committed(tokens.q, store, 0, plan, 0.1, "hadamard"))
    assert_equal(*got)


@pytest.mark.parametrize("group", [3, 8])
def test_any_place_in_a_tile_gives_the_same_bits(triton: Backend, group: int) -> None:
    """A query alone against several in one tile."""
    pages = 2 if INTERPRETED else 4
    case, store = long_context(triton, pages, group)
    tokens = case.tokens(12, 2)
    whole = triton.ops.attend_committed(tokens.q, store, 0, plan_of(case, 12, before=pages), 0.1, "hadamard")
    plan = plan_of(case, 1, before=pages)
    for i in (0, 7, 11):
        alone = triton.ops.attend_committed(tokens.q[i : i + 1], store, 0, plan, 0.1, "hadamard")
        assert_equal(alone, tuple(x[i : i + 1] for x in whole))  # type: ignore[arg-type]


def test_more_than_sixteen_heads_per_kv_head(triton: Backend) -> None:
    case, store = long_context(triton, 3, group=20)
    tokens, plan = case.tokens(2, 3), plan_of(case, 2, before=3)
    got = triton.ops.attend_committed(tokens.q, store, 0, plan, 0.1, "hadamard")
    want = get_ops(triton.device, "reference").attend_committed(tokens.q, store, 0, plan, 0.1, "hadamard")
    raw = raw_pages(*(x[:1].expand(1, 32, -1, -1).contiguous() for x in (tokens.k, tokens.v)), tokens.q.shape[1])
    raw = type(raw)(*(x.to(triton.device) for x in raw))
    theirs = raw._replace(scores=raw.scores.clone())
    own = triton.ops.attend_open(tokens.q, raw, plan, 0.1)
    want_own = get_ops(triton.device, "reference").attend_open(tokens.q, theirs, plan, 0.1)
    for mine, reference in zip((*got, *own), (*want, *want_own), strict=True):
        torch.testing.assert_close(mine.double(), reference, rtol=0, atol=1e-3)
    assert int((raw.scores - theirs.scores).abs().max()) <= 8


# Refusals


def test_an_unknown_rotation_is_refused(triton: Backend) -> None:
    case, store = long_context(triton, 1)
    with pytest.raises(ValueError, match="rotation 'spin' is not known: use hadamard or none"):
        triton.ops.attend_committed(case.tokens(1, 1).q, store, 0, plan_of(case, 1, before=1), 0.1, "spin")


def test_keys_and_values_laid_out_differently_are_refused(triton: Backend) -> None:
    case = replace(simple(), dtype=torch.float32, device=triton.device)
    tokens = case.tokens(32, 1)
    raw = raw_pages(tokens.k[None], tokens.v[None].transpose(2, 3).contiguous().transpose(2, 3), tokens.q.shape[1])
    raw = type(raw)(*(x.to(triton.device) for x in raw))
    with pytest.raises(ValueError, match="channels of keys and values"):
        triton.ops.attend_open(tokens.q, raw, plan_of(case, 32), 0.1)


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_a_cpu_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"need a GPU: .*TRITON_INTERPRET=1 before triton is imported"):
        get_ops("cpu", "triton")


# On a GPU


def decode_case(backend: Backend) -> tuple[Case, RecordStore]:
    return long_context(backend, 18, group=4)


@on_gpu
def test_no_op_asks_the_device(triton: Backend) -> None:
    layout = small_layout()
    case = Case(Method(layout, alpha_high=1.2, alpha_low=0.4), 3, torch.bfloat16, triton.device)
    driver = case.driver(triton.ops)
    request = driver.admit(case.tokens(100, 1), row=1)
    driver.run(request, [70])
    torch.cuda.synchronize()
    tokens = request.tokens
    store, plan = driver.store, plan_of(case, 10, before=2)
    raw = raw_pages(*(x[None, :32].contiguous() for x in (tokens.k, tokens.v)), tokens.q.shape[1])
    raw = type(raw)(*(x.to(triton.device) for x in raw))
    tiers = torch.ones(1, 2, 32, dtype=torch.uint8, device=triton.device)
    page = torch.tensor([60], device=triton.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        own = triton.ops.attend_open(tokens.q[:10], raw, plan, 0.1)
        triton.ops.commit_pages(store, 0, page, raw, tiers, "hadamard")
        past = triton.ops.attend_committed(tokens.q[:10], store, 0, plan, 0.1, "hadamard")
        triton.ops.merge_states(*own, *past)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_a_decode_step_replays_from_a_cuda_graph(triton: Backend) -> None:
    case, store = decode_case(triton)
    plan, first, second = plan_of(case, 1, before=18), case.tokens(1, 1), case.tokens(1, 2)
    q = first.q.clone()

    def step() -> tuple[Tensor, Tensor]:
        return triton.ops.attend_committed(q, store, 0, plan, 0.1, "hadamard")

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    q.copy_(second.q)
    graph.replay()
    assert_equal(captured, triton.ops.attend_committed(second.q, store, 0, plan, 0.1, "hadamard"))


# Compilation for a GPU that is not there


@pytest.mark.skipif(INTERPRETED, reason="what is interpreted cannot be compiled")
def test_every_kernel_compiles_for_hopper_without_spills() -> None:
    """For decode and for prefill, in a process of its own, whatever this one did to Triton."""
    code = (
        "import sys, json; from bench.kernels.triton_aot import main;"
        "argv = ['--models', 'SmolLM2', '--tiers', 'k8v4,k4v2', '--queries'];"
        "sys.exit('\\n'.join(json.dumps(main([*argv, queries])) for queries in ('1', '40')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    tables = done.stderr.splitlines()[-2:]
    for told in tables:
        assert '"kernel": "attend_pages"' in told, done.stderr[-4000:]
        assert told.count('"spilled": 0') == told.count('"spilled"') >= 7, done.stdout
