"""Numbers beyond float16, infinite ones and NaN, in every backend: who gets NaN, what saturates, what is counted."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from leankv_kernels import HIGH, LOW, PRUNED, Ops, Plan, RawPages, RecordStore, build_plan, get_ops
from leankv_kernels.reference.record import read_centres
from tests.kernels.conftest import FAST
from tests.kernels.draws import INTERPRETED, generator, small_layout
from tests.kernels.kernelutil import Backend, backend_named

PAGE, HEADS, GROUP, DIM = 64, 2, 2, 64
NAN, INF = float("nan"), float("inf")
ODD = [NAN, INF, -INF]


@pytest.fixture(scope="module", params=["reference", *FAST, *([] if INTERPRETED else ["cuda-emulated"])])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every backend, emulated CUDA included."""
    if request.param == "cuda-emulated":
        yield Backend(get_ops("cpu", "cuda-emulated"), "cpu")
        return
    with backend_named(request.param) as backend:
        yield backend


def raw_pages(n: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor]:
    g = generator(seed)
    key, value = (torch.randn(n, PAGE, HEADS, DIM, generator=g).to(dtype) for _ in range(2))
    return key, value


def committed(
    ops: Ops, key: Tensor, value: Tensor, tiers: Tensor, device: str = "cpu", near: bool = True
) -> RecordStore:
    """Pages 1, 2, ..., of which nothing is kept that the far view does not read unless ``near``."""
    layout = small_layout(page_size=PAGE, num_kv_heads=HEADS, head_dim=DIM, near=near)
    store = RecordStore(layout, 1, len(key), device)
    pages = torch.arange(1, len(key) + 1, device=device)
    raw = RawPages.whole(key.to(device), value.to(device))
    ops.commit_pages(store, 0, pages, raw, tiers.to(device), "hadamard")
    assert store.audit() == []
    return store


def plan_behind(pages: int, device: str, queries: int = 1) -> Plan:
    slots = torch.arange((pages + 2) * PAGE, dtype=torch.int32, device=device)[None] + PAGE
    return build_plan(torch.tensor([0], device=device), [pages * PAGE], [queries], slots, PAGE, 1)


def tiers_of(n: int) -> Tensor:
    return torch.tensor([PRUNED, LOW, HIGH], dtype=torch.uint8)[
        torch.randint(0, 3, (n, HEADS, PAGE), generator=generator(n))
    ]


@pytest.mark.parametrize("near", [True, False])
def test_pages_of_any_numbers_are_the_bytes_of_the_specification(backend: Backend, ops: Ops, near: bool) -> None:
    key, value = raw_pages(6, 0)
    key[0, 3, 0, 5], key[1, 4, 1, 6] = NAN, INF
    value[2, 5, 0, 7], value[3, 6, 1] = -INF, NAN
    key[4, :, 0], value[4, 7, 1], value[4, 8, 0, 3] = 3e38, -3e38, 1e5
    key[5, 9, 0, 1], value[5, 10, 1] = 70_000, 9_000
    tiers = tiers_of(6)
    tiers[2, 0, 5], tiers[4] = PRUNED, LOW
    mine, wanted = (
        committed(o, key, value, tiers, device, near) for o, device in ((backend.ops, backend.device), (ops, "cpu"))
    )
    at = torch.arange(1, 7)
    records = wanted.gather(0, at)
    assert torch.equal(mine.gather(0, at.to(backend.device)).cpu(), records)
    assert mine.usage() == wanted.usage()
    usage = wanted.usage()
    assert usage.not_finite >= 2
    assert usage.saturated >= 3
    unreadable = read_centres(records, wanted.layout).isnan().all(-1)
    assert unreadable.tolist() == [[True, False], [False, True], [True, False], [False, True], *[[False, False]] * 2]


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ["key", "value"])
def test_who_reads_a_committed_page_that_is_not_finite(backend: Backend, kind: str, odd: float) -> None:
    """Queries of that KV head behind the page get NaN, all else what it would get otherwise."""
    key, value = raw_pages(20, 1)
    fine = committed(backend.ops, key, value, torch.full((20, HEADS, PAGE), LOW, dtype=torch.uint8), backend.device)
    (key if kind == "key" else value)[2, 11, 1, 9] = odd
    tiers = torch.full((20, HEADS, PAGE), LOW, dtype=torch.uint8)
    tiers[2, 0] = PRUNED
    bad = committed(backend.ops, key, value, torch.full_like(tiers, LOW), backend.device)
    q = torch.randn(1, HEADS * GROUP, DIM, generator=generator(2)).bfloat16().to(backend.device)
    for pages in (2, 3, 20):
        plan = plan_behind(pages, backend.device)
        (out, lse), (wanted, _) = (
            backend.ops.attend_committed(q, store, 0, plan, 0.125, "hadamard") for store in (bad, fine)
        )
        assert torch.equal(out[:, :GROUP], wanted[:, :GROUP])
        if pages == 2:
            assert torch.equal(out, wanted)
        else:
            assert out[:, GROUP:].isnan().all()
            assert lse[:, GROUP:].isnan().all()
            merged, _ = backend.ops.merge_states(out, lse, wanted, torch.zeros_like(lse))
            assert merged[:, GROUP:].isnan().all()
            assert merged[:, :GROUP].isfinite().all()


def test_a_page_of_which_nothing_is_read_makes_nothing_of_it(backend: Backend) -> None:
    key, value = raw_pages(3, 3)
    key[0, 11, 1, 9] = NAN
    tiers = torch.full((3, HEADS, PAGE), LOW, dtype=torch.uint8)
    tiers[0, 1] = PRUNED
    store = committed(backend.ops, key, value, tiers, backend.device)
    q = torch.randn(1, HEADS * GROUP, DIM, generator=generator(4)).bfloat16().to(backend.device)
    out, _ = backend.ops.attend_committed(q, store, 0, plan_behind(3, backend.device), 0.125, "hadamard")
    assert out.isfinite().all()
    out, _ = backend.ops.attend_committed(q, store, 0, plan_behind(1, backend.device), 0.125, "hadamard")
    assert out[:, GROUP:].isnan().all()


def opened(backend: Backend, q: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention inside an open page of as many tokens as queries: out, LSE, column scores."""
    device, tokens = backend.device, len(q)
    raw = RawPages.whole(key[None].clone().to(device), value[None].clone().to(device))
    raw = raw._replace(scores=torch.zeros(1, HEADS * GROUP, PAGE, dtype=torch.int32, device=device))
    out, lse = backend.ops.attend_open(q.to(device), raw, plan_behind(0, device, tokens), 0.125)
    return out.cpu(), lse.cpu(), raw.scores.cpu()


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ["key", "value"])
@pytest.mark.parametrize("at", [0, 6, 39])
def test_who_reads_a_raw_token_that_is_not_finite(backend: Backend, kind: str, odd: float, at: int) -> None:
    """Queries of that KV head from the token on; what is behind them in a page shows in nothing."""
    (key, value), tokens = (x[0] for x in raw_pages(1, 5)), 40
    q = torch.randn(tokens, HEADS * GROUP, DIM, generator=generator(6)).bfloat16()
    wanted, wanted_lse, _ = opened(backend, q, key, value)
    (key if kind == "key" else value)[at, 1, 9] = odd
    out, lse, _ = opened(backend, q, key, value)
    for mine, fine in ((out, wanted), (lse, wanted_lse)):
        assert torch.equal(mine[:, :GROUP], fine[:, :GROUP])
        assert torch.equal(mine[:at], fine[:at])
    assert out[at:, GROUP:, 9].isnan().all()
    if kind == "key":
        assert out[at:, GROUP:].isnan().all()
        assert lse[at:, GROUP:].isnan().all()


@pytest.mark.parametrize("odd", ODD)
def test_a_query_that_is_not_finite_is_alone_with_it(backend: Backend, odd: float) -> None:
    (key, value), tokens = (x[0] for x in raw_pages(1, 7)), 24
    q = torch.randn(tokens, HEADS * GROUP, DIM, generator=generator(8)).bfloat16()
    store = committed(backend.ops, *raw_pages(3, 9), tiers_of(3), backend.device)

    def attend(q: Tensor) -> list[Tensor]:
        plan = plan_behind(3, backend.device, tokens)
        far, _ = backend.ops.attend_committed(q.to(backend.device), store, 0, plan, 0.125, "hadamard")
        return [opened(backend, q, key, value)[0], far.cpu()]

    fine = attend(q)
    q[11, 2, 5] = odd
    for out, wanted in zip(attend(q), fine, strict=True):
        assert out[11, 2].isnan().all()
        out[11, 2] = wanted[11, 2]
        assert torch.equal(out, wanted)


@pytest.mark.parametrize("size", [1e5, 3e38])
def test_large_numbers_give_finite_ones(backend: Backend, ops: Ops, size: float) -> None:
    (key, value), tokens = (x[0] for x in raw_pages(1, 10)), 24
    key[3], value[5], key[7, 0, 2], value[7, 1, 3] = size, -size, -size, size
    q = torch.randn(tokens, HEADS * GROUP, DIM, generator=generator(11)).bfloat16()
    for scale in (1.0, 100.0):
        out, lse, scores = opened(backend, (q * scale).bfloat16(), key, value)
        assert out.isfinite().all()
        assert lse.isfinite().all()
        assert out.abs().max() <= 65_600
        assert (scores >= 0).all()
        store = committed(backend.ops, key[None], value[None], tiers_of(1), backend.device)
        plan = plan_behind(1, backend.device, tokens)
        out, _ = backend.ops.attend_committed((q * scale).bfloat16().to(backend.device), store, 0, plan, 0.125, "none")
        assert out.isfinite().all()
