"""Freeing, cutting and counting in C++ and CUDA: the reference's blocks, table, ring and usage, byte for byte."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leankv_kernels import RecordLayout, RecordStore, cpu, get_ops
from leankv_kernels.layout import LEVEL_BASE, LEVEL_NEAR, TIERS
from leankv_kernels.reference.record import encode
from tests.kernels.kernelutil import backend_named, few

PAGES, LAYERS = 7, 3
PAIRS = (("k8v4", "k4v2"), ("k8v8", "k4v4"), ("k4v2", "k4v2"), ("k8v4", "k8v4"))


def two_stores(pair: tuple[str, str], near: bool, heads: int, dim: int, seed: int) -> list[RecordStore]:
    """The same records in two stores, absent here and there."""
    random = torch.Generator().manual_seed(seed)
    layout = RecordLayout(32, heads, dim, *(TIERS[name] for name in pair), near=near)
    stores = [RecordStore(layout, LAYERS, PAGES, "cpu") for _ in range(2)]
    for layer in range(LAYERS):
        pages = torch.randperm(PAGES, generator=random)[: int(torch.randint(1, PAGES + 1, (), generator=random))] + 1
        key, value = (torch.randn(len(pages), heads, 32, dim, generator=random, dtype=torch.float64) for _ in "kv")
        tiers = torch.randint(0, 4, (len(pages), heads, 32), generator=random, dtype=torch.uint8)
        tiers[:, 0] = seed % 4
        for store in stores:
            store.blocks[1:].fill_(0) if layer == 0 else None
            store.write(layer, pages, *(x.clone() for x in encode(key, value, tiers, layout)))
    return stores


def assert_same(a: RecordStore, b: RecordStore) -> None:
    for one, other in ((a.page_table, b.page_table), (a.usage_counts, b.usage_counts)):
        assert torch.equal(one, other)
    # What lies in the spare block is nobody's.
    assert torch.equal(a.blocks[:-1], b.blocks[:-1])
    assert int(a.ring.free_blocks) == int(b.ring.free_blocks)
    assert torch.equal(a.ring.free_ids(), b.ring.free_ids())
    assert a.audit() == b.audit() == []


BACKENDS = [*(f"cpu-{isa}" for isa in cpu.isas()), "cuda-emulated"]


@pytest.mark.parametrize("backend", BACKENDS)
@few(25)
@given(
    pair=st.sampled_from(PAIRS),
    near=st.booleans(),
    heads=st.integers(1, 5),
    dim=st.sampled_from((16, 64, 80)),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_the_same_as_the_reference(
    backend: str, pair: tuple[str, str], near: bool, heads: int, dim: int, seed: int, data: st.DataObject
) -> None:
    fast, slow = two_stores(pair, near, heads, dim, seed)
    with backend_named(backend) as chosen:
        ops = chosen.ops, get_ops("cpu", "reference")
        some = st.lists(st.integers(0, PAGES), unique=True, min_size=1)
        for _ in range(data.draw(st.integers(1, 4))):
            pages = torch.tensor(data.draw(some))
            levels = torch.tensor([data.draw(st.integers(LEVEL_BASE, LEVEL_NEAR)) for _ in pages])
            counts = [o.count_pages(s, pages) for o, s in zip(ops, (fast, slow), strict=True)]
            assert torch.equal(*counts)
            for o, s in zip(ops, (fast, slow), strict=True):
                o.cut_pages(s, pages, levels)
            assert_same(fast, slow)
            gone = torch.tensor(data.draw(some))
            for o, s in zip(ops, (fast, slow), strict=True):
                o.free_pages(s, gone)
            assert_same(fast, slow)


def test_nothing_named_is_nothing_done() -> None:
    fast, slow = two_stores(PAIRS[0], True, 2, 64, 1)
    none = torch.empty(0, dtype=torch.int64)
    ops = get_ops("cpu", "cpu")
    ops.free_pages(fast, none)
    ops.cut_pages(fast, none, none)
    assert ops.count_pages(fast, none).shape == (0, 6)
    assert_same(fast, slow)
