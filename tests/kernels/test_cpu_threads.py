"""The cpu kernels share long work among threads; who does what must not show in any bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from leankv_kernels import TIERS, Ops, Plan, RawPages, RecordLayout, RecordStore, build_plan, get_ops
from tests.kernels.draws import generator
from tests.kernels.kernelutil import raw_pages

PAGES, PAGE, HEADS, GROUP, DIM = 70, 64, 3, 3, 64


@pytest.fixture
def threads() -> Iterator[None]:
    """Whatever a test chooses ends with it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def cpu() -> Ops:
    return get_ops("cpu", "cpu")


@pytest.fixture(scope="module")
def store(cpu: Ops) -> RecordStore:
    """Pages 1 to PAGES in two layers: pages of the one committed by one thread, of the other by three."""
    g = generator(0)
    layout = RecordLayout(PAGE, HEADS, DIM, TIERS["k8v4"], TIERS["k4v2"])
    store = RecordStore(layout, 2, PAGES, "cpu")
    key, value = (torch.randn(PAGES, PAGE, HEADS, DIM, generator=g).bfloat16() for _ in range(2))
    tiers = torch.randint(0, 3, (PAGES, HEADS, PAGE), generator=g, dtype=torch.uint8)
    tiers[:, 1] = 0  # a head that holds nothing beside others that do
    before = torch.get_num_threads()
    for layer, count in enumerate((1, 3)):
        torch.set_num_threads(count)
        cpu.commit_pages(store, layer, torch.arange(1, PAGES + 1), RawPages.whole(key, value), tiers, "hadamard")
    torch.set_num_threads(before)
    return store


def queries(n: int) -> Tensor:
    return torch.randn(n, HEADS * GROUP, DIM, generator=generator(n)).bfloat16()


def plan_of(prefix: list[int], extend: list[int]) -> Plan:
    """Requests that all read pages 1, 2, ..."""
    slots = torch.arange(PAGE, (PAGES + 2) * PAGE, dtype=torch.int32).expand(len(prefix), -1)
    return build_plan(torch.arange(len(prefix)), prefix, extend, slots, PAGE, 1)


def attend(cpu: Ops, store: RecordStore, q: Tensor, plan: Plan, count: int) -> Tensor:
    torch.set_num_threads(count)
    out, lse = cpu.attend_committed(q, store, 0, plan, 0.125, "hadamard")
    return torch.cat([out, lse[..., None]], dim=-1)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [2, 3, 7])
def test_decode_over_many_splits(cpu: Ops, store: RecordStore, count: int) -> None:
    """Few long requests are cut into splits for the threads, and a request without pages is among them."""
    prefix = [PAGES * PAGE + 3, 40 * PAGE, 5, 17 * PAGE + 63]
    q, plan = queries(4), plan_of(prefix, [1] * 4)
    alone = torch.cat([attend(cpu, store, q[i : i + 1], plan_of([n], [1]), 1) for i, n in enumerate(prefix)])
    assert bool((alone[2, :, -1] == float("-inf")).all())
    assert torch.equal(attend(cpu, store, q, plan, count), alone)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_chunk_of_queries_gets_what_each_gets_in_decode(cpu: Ops, store: RecordStore, count: int) -> None:
    """Many rows share decoded panels, few are read on the fly: the same bits."""
    start, n = 30 * PAGE - 20, 50
    q = queries(n)
    alone = torch.cat([attend(cpu, store, q[i : i + 1], plan_of([start + i], [1]), 1) for i in range(n)])
    assert torch.equal(attend(cpu, store, q, plan_of([start], [n]), count), alone)


@pytest.mark.usefixtures("threads")
def test_open_pages(cpu: Ops) -> None:
    g = generator(1)
    key, value = (torch.randn(40, PAGE, HEADS, DIM, generator=g).bfloat16() for _ in range(2))
    q, plan = queries(40 * PAGE), plan_of([0], [40 * PAGE])
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        raw = raw_pages(key, value, HEADS * GROUP)
        results.append([*cpu.attend_open(q, raw, plan, 0.125), raw.scores])
        results[-1] += cpu.merge_states(*results[-1][:2], results[-1][0] * 2, results[-1][1] + 1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0], strict=True))


def test_records_do_not_depend_on_who_packs_them(store: RecordStore) -> None:
    first, second = (store.gather(layer, torch.arange(1, PAGES + 1)) for layer in range(2))
    for records in (first, second):
        words = records.view(torch.int32)
        words[:, 1] = 0
        words[:, store.layout.list_word : store.layout.list_word + store.layout.max_blocks] = 0
    assert torch.equal(first, second)
    assert store.audit() == []
