"""Packing pages and taking them in again: what arrives is what left, and every backend moves the reference's bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leankv_kernels import RecordLayout, RecordStore, cpu, get_ops
from leankv_kernels.layout import LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR, TIERS, read_header
from leankv_kernels.reference.record import decode, encode
from tests.kernels.kernelutil import backend_named, few
from tests.kernels.test_shrink import PAIRS, assert_same

PAGES, LAYERS, TOKENS = 7, 3, 32
BACKENDS = ["reference", *(f"cpu-{isa}" for isa in cpu.isas()), "cuda-emulated"]


def filled(pair: tuple[str, str], near: bool, heads: int, dim: int, seed: int) -> RecordStore:
    """A store with a record of every page but the last in every layer, blocks in disorder."""
    random = torch.Generator().manual_seed(seed)
    layout = RecordLayout(TOKENS, heads, dim, *(TIERS[name] for name in pair), near=near)
    store = RecordStore(layout, LAYERS, PAGES, "cpu")
    store.blocks[1:].fill_(7)
    store.ring.ids[: store.num_blocks] = store.ring.ids[torch.randperm(store.num_blocks, generator=random)]
    for layer in range(LAYERS):
        shape = (PAGES - 1, heads, TOKENS)
        key, value = (torch.randn(*shape, dim, generator=random, dtype=torch.float64) for _ in "kv")
        tiers = torch.randint(0, 3, shape, generator=random, dtype=torch.uint8)
        tiers[0], tiers[1] = 0, 2  # all pruned, all high
        tiers[:, 0, seed % TOKENS :] = seed % 3
        store.write(layer, torch.arange(1, PAGES), *encode(key, value, tiers, layout))
    return store


def contents(store: RecordStore, pages: Tensor) -> list[Tensor]:
    """What records say, in every layer: headers but for places, both views."""
    said = []
    for layer in range(LAYERS):
        records = store.gather(layer, pages)
        header = read_header(records, store.layout)
        said += [header.level, header.nbytes, header.blocks, *header.counts]
        near = (header.level == LEVEL_NEAR) & store.layout.near
        for at in (torch.zeros_like(near), near):
            view = decode(records, store.layout, at)
            said += [view.valid, view.keys(), view.values()]
    return said


@pytest.mark.parametrize("backend", BACKENDS)
@few(20)
@given(
    pair=st.sampled_from(PAIRS),
    near=st.booleans(),
    heads=st.integers(1, 5),
    dim=st.sampled_from((16, 64, 80)),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_what_arrives_is_what_left(
    backend: str, pair: tuple[str, str], near: bool, heads: int, dim: int, seed: int, data: st.DataObject
) -> None:
    source = filled(pair, near, heads, dim, seed)
    there, spec = RecordStore(source.layout, LAYERS, PAGES, "cpu"), RecordStore(source.layout, LAYERS, PAGES, "cpu")
    for store in (there, spec):
        store.blocks[1:].fill_(9)
        store.ring.head.fill_(store.num_blocks - 1 - seed % 9)  # blocks are taken past the ring's end
    trimmed = data.draw(st.lists(st.integers(1, PAGES - 1), unique=True))
    source.cut(torch.tensor(trimmed, dtype=torch.int64), torch.full((len(trimmed),), LEVEL_FAR))
    pages = torch.tensor(data.draw(st.lists(st.integers(1, PAGES - 1), unique=True)), dtype=torch.int64)
    level = torch.tensor([data.draw(st.sampled_from((LEVEL_FAR, LEVEL_NEAR))) for _ in pages], dtype=torch.int64)
    names = torch.tensor(data.draw(st.permutations(range(1, PAGES + 1))))[: len(pages)]
    with backend_named(backend) as chosen:
        want = get_ops("cpu", "reference").pack_pages(source, pages, level)
        more = data.draw(st.sampled_from((None, 0, 1000)))
        room = None if more is None else (want.far.numel() + more, want.near.numel() + more)
        packed = chosen.ops.pack_pages(source, pages, level, room)
        packed = packed._replace(far=packed.far[: want.far.numel()], near=packed.near[: want.near.numel()])
        for got, wanted in zip(packed, want, strict=True):
            assert torch.equal(got, wanted)
        chosen.ops.unpack_pages(there, names, packed)
        get_ops("cpu", "reference").unpack_pages(spec, names, want)
        assert_same(there, spec)
        again = chosen.ops.pack_pages(there, names, level)
        assert all(torch.equal(*pair) for pair in zip(packed, again, strict=True))
    source.cut(pages, level)
    for got, wanted in zip(contents(there, names), contents(source, pages), strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(there.count_pages(names), source.count_pages(pages))
    held = source.count_pages(pages)[:, LEVEL_FAR - LEVEL_BASE] * source.layout.block_bytes
    assert (packed.far_bytes.sum(1) <= held).all(), "no longer than the record is on the device"


def test_nothing_of_the_pool_leaves_with_a_page() -> None:
    a, b = filled(("k8v4", "k4v2"), True, 2, 64, 1), filled(("k8v4", "k4v2"), True, 2, 64, 1)
    b.swap(torch.tensor([2, 3]), torch.tensor([5, 7]))  # page 7 holds nothing
    ops = get_ops("cpu", "cpu")
    near = torch.full((2,), LEVEL_NEAR)
    one, other = ops.pack_pages(a, torch.tensor([2, 3]), near), ops.pack_pages(b, torch.tensor([5, 7]), near)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_what_does_not_fit_is_left_out() -> None:
    store = filled(("k8v4", "k4v2"), True, 2, 64, 1)
    pages, level = torch.tensor([1, 2, 3]), torch.full((3,), LEVEL_NEAR)
    ops = get_ops("cpu", "cuda-emulated")
    whole = ops.pack_pages(store, pages, level)
    room = whole.far.numel() - 4, whole.near.numel()
    packed = ops.pack_pages(store, pages, level, room)
    assert (packed.far.numel(), packed.near.numel()) == room
    assert torch.equal(packed.far_bytes, whole.far_bytes)
    fits = int(whole.far_bytes.sum() - whole.far_bytes[-1, -1])
    assert torch.equal(packed.far[:fits], whole.far[:fits])


def test_lengths_that_are_not_those_of_the_bytes_are_refused() -> None:
    store = filled(("k8v4", "k4v2"), True, 2, 64, 1)
    packed = cpu.pack_pages(store, torch.tensor([1, 2]), torch.full((2,), LEVEL_NEAR))
    for name in ("far", "near"):
        short = getattr(packed, name)[:-1]
        with pytest.raises(ValueError, match=name):
            cpu.unpack_pages(store, torch.tensor([1, 2]), packed._replace(**{name: short}))
    longest = store.layout.record_bytes
    for wrong in (
        {"far_bytes": -packed.far_bytes},
        {"far_bytes": 0 * packed.far_bytes},
        {"near_bytes": packed.near_bytes + longest},
    ):
        with pytest.raises(ValueError, match="no record has parts of such lengths"):
            cpu.unpack_pages(store, torch.tensor([1, 2]), packed._replace(**wrong))
