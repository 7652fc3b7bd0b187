"""The CUDA reader's own source on a CPU (leankv_kernels.cuda.emulated), with its check for races, against the spec."""

from __future__ import annotations

import shutil
from random import Random
from typing import NamedTuple
from unittest import mock

import pytest
import torch
from hypothesis import given
from torch import Tensor

from leankv_kernels import (
    TIERS,
    Ops,
    Plan,
    RawPages,
    RecordLayout,
    RecordStore,
    build_plan,
)
from leankv_kernels import layout as L
from leankv_kernels.cuda import commit
from leankv_kernels.cuda.attend import HEAD_DIMS, PAGES, attend_shape
from leankv_kernels.cuda.compiler import SHARED_BYTES
from leankv_kernels.cuda.emulated import EMULATOR
from tests.kernels.cases import CAPS, MODEL_DTYPES, Case, store_with
from tests.kernels.draws import (
    PAIRS,
    TIER_MAPS,
    calm_rows,
    generator,
    mids,
    random_tier_maps,
    small_layout,
    wild_rows,
)
from tests.kernels.driver import Method
from tests.kernels.kernelutil import Backend, dice, few
from tests.kernels.test_backends import run_beside_the_specification
from tests.kernels.witness import Witness

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator is compiled by g++")


class Kernel(NamedTuple):
    """One compiled shape, and the layouts that it serves."""

    tiers: str
    head_dim: int
    group: int
    heads: int = 2
    near: bool = True
    page_size: int = 128
    queries: int = 1
    """The most of a tile: with several, a block takes as many as it can."""
    v_head_dim: int = 0


# Each takes some seconds to compile, so the whole suite has few and a developer's loop one.
KERNELS = [
    Kernel("k8v4,k4v2", 128, 4),
    pytest.param(Kernel("k8v4,k4v4,k4v2", 64, 3, 3, queries=9), marks=pytest.mark.slow),
    pytest.param(Kernel("k8v4,k4v4", 96, 7, 1, page_size=64), marks=pytest.mark.slow),
    pytest.param(Kernel("k4v2", 128, 8, near=False, queries=3), marks=pytest.mark.slow),
    pytest.param(Kernel("k8v4,k4v2", 80, 1, page_size=64, queries=20), marks=pytest.mark.slow),
    pytest.param(Kernel("k8v8,k8v4,k4v4", 64, 2, 1, page_size=256), marks=pytest.mark.slow),
    pytest.param(Kernel("k8v4", 256, 8, 1, near=False), marks=pytest.mark.slow),
    Kernel("k8v4,k4v2", 192, 2, 2, page_size=64, queries=3, v_head_dim=128),
    pytest.param(Kernel("k8v4,k4v4", 64, 3, 1, page_size=64, v_head_dim=512), marks=pytest.mark.slow),
    pytest.param(Kernel("k8v4,k4v2", 512, 2, 1, page_size=64, queries=4), marks=pytest.mark.slow),
    pytest.param(Kernel("k4v2", 512, 5, 1, near=False, v_head_dim=80), marks=pytest.mark.slow),
]


def layout_of(kernel: Kernel) -> RecordLayout:
    pair = kernel.tiers if "," in kernel.tiers else f"{kernel.tiers},{kernel.tiers}"
    return small_layout(
        pair,
        page_size=kernel.page_size,
        num_kv_heads=kernel.heads,
        head_dim=kernel.head_dim,
        near=kernel.near,
        v_head_dim=kernel.v_head_dim,
    )


def queries(rng: Random, count: int, heads: int, dim: int) -> Tensor:
    q = torch.randn(count, heads, dim, generator=generator(rng.getrandbits(32))) * rng.choice((0.1, 1.0, 2.5))
    if rng.random() < 0.1:
        q[:, :1] = 0
    return q.to(rng.choice(MODEL_DTYPES))


def plan_of(before: list[int], counts: list[int], near_pages: int, page: int = 128) -> Plan:
    """Requests that read the first so many of the same pages, 1, 2, ..."""
    width = (max(before) + 2) * page
    slots = (torch.arange(width, dtype=torch.int32) + page).repeat(len(before), 1)
    return build_plan(torch.arange(len(before)), [page * n for n in before], counts, slots, page, near_pages)


def read_any_pages(cuda: Ops, ops: Ops, kernel: Kernel, rng: Random) -> None:
    """Any tiers, numbers of pages and of queries, records cut, in blocks that lie anywhere."""
    layout, pages = layout_of(kernel), rng.randint(1, 2432 // kernel.page_size)
    near_pages = rng.randint(0, 2) if kernel.near else 0
    case = Case(Method(layout, near_pages), kernel.group, torch.float32)
    level = rng.choice((L.LEVEL_BASE, L.LEVEL_FAR)) if kernel.near and not near_pages else L.LEVEL_NEAR
    store = store_with(case, random_tier_maps(rng, layout, pages), level, calm=rng.random() < 0.5)
    requests = rng.randint(1, 2)
    before = [rng.randint(0, pages) for _ in range(requests)]
    counts = [rng.randint(1, kernel.queries) for _ in range(requests)]
    plan = plan_of(before, counts, near_pages, kernel.page_size)
    q = queries(rng, plan.num_tokens, kernel.heads * kernel.group, kernel.head_dim)
    EMULATOR.seed = rng.getrandbits(16)
    rotation = rng.choice(("hadamard", "none"))
    Witness(cuda, ops).attend_committed(q, store, 0, plan, kernel.head_dim**-0.5, rotation, rng.choice(CAPS))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@few(12)
@given(rng=dice)
def test_any_pages_read_as_the_specification_reads_them(cuda: Ops, ops: Ops, kernel: Kernel, rng: Random) -> None:
    read_any_pages(cuda, ops, kernel, rng)


@pytest.mark.slow
@few(6)
@given(rng=dice)
def test_a_gpu_with_little_shared_memory_reads_with_fewer_warps(cuda: Ops, ops: Ops, rng: Random) -> None:
    EMULATOR.shared_bytes = SHARED_BYTES["89"]
    try:
        read_any_pages(cuda, ops, Kernel("k8v4,k4v2", 128, 4), rng)
    finally:
        EMULATOR.shared_bytes = SHARED_BYTES["90a"]


def random_kernel(rng: Random) -> Kernel:
    """Any shape that the kernels are written for."""
    high, low = rng.choice(PAIRS)
    mid = rng.choice([None, *(m for m in mids(high, low) if m in TIERS.values())])
    tiers = ",".join(tier.name for tier in (high, mid, low) if tier)
    group = rng.choice((*range(1, 9), 12, 16))
    heads, near = rng.randint(1, 3), rng.random() < 0.7
    dims, page = (rng.choice(HEAD_DIMS), rng.choice((0, *HEAD_DIMS))), rng.choice(PAGES)
    if max(dims) == 512:
        group, page = min(group, 8), 64
    return Kernel(tiers, dims[0], group, heads, near, page, rng.choice((1, 1, 5, 20)), dims[1])


@pytest.mark.slow
@few(2)
@given(rng=dice)
def test_any_shape(cuda: Ops, ops: Ops, rng: Random) -> None:
    """Each example compiles a kernel; `make fuzz-cuda` has many."""
    kernel = random_kernel(rng)
    for _ in range(3):
        read_any_pages(cuda, ops, kernel, rng)


@pytest.mark.parametrize(
    ("head_dim", "page_size", "v_head_dim"),
    [
        (64, 64, 0),
        (192, 64, 128),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in ((80, 256, 0), (128, 128, 0), (256, 64, 0), (64, 64, 512))),
        pytest.param(512, 64, 0, marks=pytest.mark.slow),
    ],
)
@few(12)
@given(rng=dice)
def test_any_pages_are_committed_to_the_bytes_of_the_specification(
    cuda: Ops, ops: Ops, head_dim: int, page_size: int, v_head_dim: int, rng: Random
) -> None:
    """Any tiers, numbers of heads and pages, dtypes and values, in a ring that goes round."""
    high, low = rng.choice(PAIRS)
    mid = rng.choice([None, *mids(high, low)])
    layout = RecordLayout(page_size, rng.randint(1, 3), head_dim, high, low, rng.random() < 0.7, mid, v_head_dim)
    witness, dtype = Witness(cuda, ops), rng.choice(MODEL_DTYPES)
    store = RecordStore(layout, 3, 5, "cpu")
    EMULATOR.seed = rng.getrandbits(16)
    for first, layers in ((0, 1), (1, 2)):
        count = rng.randint(1, 2)
        pages = torch.tensor(rng.sample(range(1, 6), count))
        shape = (layers, count + rng.randint(0, 1), page_size, layout.num_kv_heads)
        rows, dims = rng.choice((calm_rows, wild_rows)), (head_dim, layout.v_head_dim)
        key, value = (rows((*shape, dim), rng.getrandbits(32)).to(dtype) for dim in dims)
        places = torch.tensor(rng.sample(range(shape[1]), count))
        raw = RawPages(key, value, torch.zeros(*shape[:2], 0, page_size, dtype=torch.int32), places)
        tiers = torch.stack([random_tier_maps(rng, layout, count) for _ in range(layers)])
        with mock.patch.object(commit, "PAIRS", rng.choice((1, 2, 64))):
            witness.commit_pages(store, first, pages, raw, tiers, rng.choice(("hadamard", "none")))


@pytest.mark.parametrize("pattern", TIER_MAPS)
def test_ugly_pages(cuda: Ops, ops: Ops, pattern: str) -> None:
    kernel = KERNELS[0]
    assert isinstance(kernel, Kernel)
    layout = layout_of(kernel)
    shape = (layout.num_kv_heads, layout.page_size)
    tiers = torch.stack([TIER_MAPS[pattern](shape, page) for page in range(3)])
    store = store_with(Case(Method(layout, 1), kernel.group, torch.float32), tiers)
    plan = plan_of([3, 1], [2, 1], 1)
    q = queries(Random(1), plan.num_tokens, kernel.heads * kernel.group, kernel.head_dim)
    Witness(cuda, ops).attend_committed(q, store, 0, plan, 0.1, "hadamard")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        (Kernel("k8v4,k4v2", 64, 3), torch.bfloat16),
        (Kernel("k8v4,k4v2", 192, 2, page_size=64, v_head_dim=128), torch.bfloat16),
        pytest.param(Kernel("k4v2", 512, 16, 1, page_size=64), torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(Kernel("k8v4,k4v2", 64, 2, page_size=64, v_head_dim=512), torch.float32, marks=pytest.mark.slow),
        (Kernel("k4v2,k4v2", 64, 20, page_size=64), torch.bfloat16),  # more query heads than a block takes rows
        pytest.param(Kernel("k8v4,k4v2", 128, 8, 1, page_size=256), torch.float16, marks=pytest.mark.slow),
        pytest.param(Kernel("k8v4,k4v2", 80, 1, page_size=64), torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_sequences_run_as_on_the_specification(cuda: Ops, ops: Ops, shape: Kernel, dtype: torch.dtype) -> None:
    """Prompts in chunks and single tokens, in company, through every op."""
    layout, page = layout_of(shape), shape.page_size
    case = Case(Method(layout, 1, alpha_high=1.2, alpha_low=0.4), shape.group, dtype)
    EMULATOR.seed = page
    witness = run_beside_the_specification(Backend(cuda, "cpu"), ops, case, Random(page), [page + 70, page - 1, 1])
    assert all(witness.seen[op] for op in ("attend_open", "attend_committed", "merge_states", "commit_pages"))


@pytest.mark.parametrize("dim", [80, 128])
def test_states_merge_where_one_or_both_are_empty(cuda: Ops, ops: Ops, dim: int) -> None:
    g = generator(dim)
    outs = [torch.randn(5, 3, dim, generator=g) for _ in "ab"]
    lses = [torch.randn(5, 3, generator=g) * 20 for _ in "ab"]
    empty = [torch.arange(5) % 4 == 1, torch.arange(5) % 3 == 1]
    for out, lse, none in zip(outs, lses, empty, strict=True):
        out[none], lse[none] = 0, float("-inf")
    assert bool((empty[0] & empty[1]).any())
    Witness(cuda, ops).merge_states(outs[0], lses[0], outs[1], lses[1])
    for sinks in (torch.tensor([0.0, -9.0, 30.0]), torch.tensor([float("-inf"), 2.0, 0.5]).bfloat16()):
        Witness(cuda, ops).merge_states(outs[0], lses[0], outs[1], lses[1], sinks=sinks)


def test_no_bit_depends_on_the_batch_or_on_the_order_of_warps(cuda: Ops) -> None:
    kernel = KERNELS[0]
    assert isinstance(kernel, Kernel)
    layout, rng = layout_of(kernel), Random(4)
    case = Case(Method(layout, 1), kernel.group, torch.float32)
    store = store_with(case, random_tier_maps(rng, layout, 11), calm=True)
    q = queries(rng, 4, kernel.heads * kernel.group, kernel.head_dim)
    together = cuda.attend_committed(q, store, 0, plan_of([11, 3, 10], [2, 1, 1], 1), 0.1, "hadamard")
    for first, count, before in ((0, 2, 11), (2, 1, 3), (3, 1, 10), (1, 1, 11)):
        EMULATOR.seed += 7
        some = slice(first, first + count)
        alone = cuda.attend_committed(q[some], store, 0, plan_of([before], [count], 1), 0.1, "hadamard")
        assert all(torch.equal(x[some], y) for x, y in zip(together, alone, strict=True))


def test_pages_without_records_are_passed_over(cuda: Ops, ops: Ops) -> None:
    kernel = KERNELS[0]
    assert isinstance(kernel, Kernel)
    layout = layout_of(kernel)
    store = RecordStore(layout, 1, 3, "cpu")
    plan = plan_of([2], [1], 1)
    q = queries(Random(2), 1, kernel.heads * kernel.group, kernel.head_dim)
    out, lse = cuda.attend_committed(q, store, 0, plan, 0.1, "hadamard")
    assert not out.any()
    assert bool((lse == float("-inf")).all())


@pytest.mark.parametrize(
    ("layout", "group", "says"),
    [
        (small_layout(page_size=32), 1, "pages of 64, 128 or 256 tokens, not 32"),
        (small_layout(page_size=128, head_dim=48), 1, "not 48"),
        (small_layout(page_size=128), 17, "not 17"),
    ],
)
def test_a_shape_that_is_not_written_is_refused(layout: RecordLayout, group: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        attend_shape(layout, group)
