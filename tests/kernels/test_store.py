"""The record store against a simple model, and its audit against deliberate corruption."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor

from leankv_kernels import HIGH, LOW, MID, PRUNED, TIERS, RecordLayout, RecordStore
from leankv_kernels import layout as L
from leankv_kernels.reference.record import cut, decode, read_header, read_tiers
from leankv_kernels.store import Usage
from tests.kernels.draws import (
    PAIRS,
    TIER_MAPS,
    commit,
    formats,
    generator,
    mids,
    pair_name,
    small_layout,
)
from tests.kernels.driver import without_place
from tests.kernels.kernelutil import few

TRIPLES = [
    ",".join((high.name, mid.name, low.name)) for high, low in PAIRS for mid in mids(high, low) if mid.name in TIERS
]


LAYERS, PAGES = 2, 5


def count_by_hand(layout: RecordLayout, tiers: Tensor, level: int, nbytes: int) -> Usage:
    """The usage of one record from its tiers, in words of the documentation."""
    d, high = layout.head_dim, sum(layout.high)
    n = {tier: int((tiers == tier).sum()) for tier in (HIGH, MID, LOW, PRUNED)}
    bits = {tier: sum(form) for tier, form in formats(layout).items()}
    kept = bits if level > L.LEVEL_BASE else dict.fromkeys(bits, bits[LOW])
    held = {tier: n[tier] * (8 + d * kept[tier] // 8) for tier in bits}
    missing = sum(n[tier] * d * (high - bits[tier]) // 8 for tier in bits)
    near = missing + n[PRUNED] * (8 + d * high // 8) if level == L.LEVEL_NEAR else 0
    blocks = -(-nbytes // layout.block_bytes)
    padding = blocks * layout.block_bytes - layout.header_bytes - sum(held.values()) - near
    assert padding >= 0
    return Usage(layout.header_bytes, *held.values(), near, padding, 1, blocks, *n.values())


class StoreModel(RuleBasedStateMachine):
    """The store is a dictionary from (layer, page) to a record."""

    @initialize(
        tiers=st.sampled_from([*map(pair_name, PAIRS), *TRIPLES]),
        near=st.booleans(),
        page_size=st.sampled_from((16, 32)),
    )
    def create(self, tiers: str, near: bool, page_size: int) -> None:
        self.layout = small_layout(tiers, near=near, page_size=page_size)
        self.store = RecordStore(self.layout, LAYERS, PAGES, "cpu")
        # Memory that was never written may hold anything.
        self.store.blocks[1:] = torch.randint(0, 256, self.store.blocks[1:].shape, dtype=torch.uint8)
        self.records: dict[tuple[int, int], Tensor] = {}
        self.counted: dict[tuple[int, int], Usage] = {}
        self.seed = 0

    @rule(data=st.data(), layer=st.integers(0, LAYERS - 1))
    def write(self, data: st.DataObject, layer: int) -> None:
        absent = [p for p in range(1, PAGES + 1) if (layer, p) not in self.records]
        if not absent:
            return
        pages = data.draw(st.lists(st.sampled_from(absent), unique=True, min_size=1))
        names = [data.draw(st.sampled_from(sorted(TIER_MAPS))) for _ in pages]
        self.seed += 1
        shape = (self.layout.num_kv_heads, self.layout.page_size)
        page = commit(self.layout, torch.stack([TIER_MAPS[name](shape, self.seed) for name in names]), self.seed)
        level = data.draw(st.integers(L.LEVEL_BASE, L.LEVEL_NEAR))
        records = cut(page.records, self.layout, level)
        header = read_header(records, self.layout)
        self.store.write(layer, torch.tensor(pages), records.clone(), header.nbytes.long())
        for i, p in enumerate(pages):
            self.records[layer, p] = records[i]
            self.counted[layer, p] = count_by_hand(
                self.layout, page.tiers[i], int(header.level[i]), int(header.nbytes[i])
            )

    @rule(pages=st.lists(st.integers(0, PAGES), unique=True))
    def free(self, pages: list[int]) -> None:
        """Pages that hold nothing, page 0 included, are passed over."""
        self.store.free(torch.tensor(pages, dtype=torch.int64))
        for held in [key for key in self.records if key[1] in pages]:
            del self.records[held], self.counted[held]

    @rule(pages=st.lists(st.integers(0, PAGES), unique=True), data=st.data())
    def cut(self, pages: list[int], data: st.DataObject) -> None:
        """Every layer of a page; those that hold less already stay as they are."""
        levels = [data.draw(st.integers(L.LEVEL_BASE, L.LEVEL_NEAR)) for _ in pages]
        told = self.store.count_pages(torch.tensor(pages, dtype=torch.int64))
        self.store.cut(torch.tensor(pages, dtype=torch.int64), torch.tensor(levels, dtype=torch.int64))
        for page, level, counts in zip(pages, levels, told.tolist(), strict=True):
            held = [key for key in self.records if key[1] == page]
            for key in held:
                self.records[key] = cut(self.records[key][None], self.layout, level)[0]
                header = read_header(self.records[key][None], self.layout)
                tiers = read_tiers(self.records[key][None], self.layout)[0]
                self.counted[key] = count_by_hand(self.layout, tiers, int(header.level), int(header.nbytes))
            mine = [self.counted[key] for key in held]
            assert counts[level - 1] == sum(one.blocks for one in mine)
            tokens = [(one.high_tokens, one.mid_tokens, one.low_tokens) for one in mine]
            assert counts[3:] == [sum(tier) for tier in zip(*tokens, strict=True)] or not mine

    @rule(pages=st.lists(st.integers(1, PAGES), unique=True, min_size=2, max_size=4))
    def swap(self, pages: list[int]) -> None:
        half = len(pages) // 2
        a, b = pages[:half], pages[half : 2 * half]
        self.store.swap(torch.tensor(a), torch.tensor(b))
        to = dict(zip(a + b, b + a, strict=True))
        for held in (self.records, self.counted):
            moved = {(layer, to.get(page, page)): x for (layer, page), x in held.items()}
            held.clear()
            held.update(moved)

    @rule()
    def clear(self) -> None:
        self.store.clear()
        self.records.clear()
        self.counted.clear()

    @invariant()
    def every_block_is_accounted_for(self) -> None:
        assert self.store.audit() == []
        usage = self.store.usage()
        assert usage == Usage(
            *(sum(column) for column in zip(Usage(*[0] * len(Usage._fields)), *self.counted.values(), strict=True))
        )
        assert sum(usage[:6]) == usage.blocks * self.layout.block_bytes
        assert int(self.store.ring.free_blocks) == self.store.num_blocks - usage.blocks

    @invariant()
    def what_was_written_comes_back(self) -> None:
        pages = torch.arange(PAGES + 1).flip(0)
        for layer in range(LAYERS):
            got = self.store.gather(layer, pages)
            header, words = read_header(got, self.layout), got.view(torch.int32)
            bare = without_place(got, self.layout)
            for i, p in enumerate(pages.tolist()):
                if (layer, p) not in self.records:
                    assert not got[i].any()
                    continue
                length = int(header.nbytes[i])
                assert torch.equal(bare[i, :length], self.records[layer, p][:length])
                assert words[i, : L.W_LAYER + 1].tolist() == [p, layer]
                held = torch.arange(self.layout.max_blocks) < header.blocks[i]
                assert torch.equal(header.block_list[i] != 0, held)


TestStore = StoreModel.TestCase
TestStore.settings = few(40)


def filled_store(layers: int = 2, pages: int = 3) -> RecordStore:
    """Every page of every layer holds a record of random tiers."""
    layout = small_layout()
    store = RecordStore(layout, layers, pages, "cpu")
    for layer in range(layers):
        tiers = torch.randint(0, 3, (pages, 2, 32), generator=generator(layer), dtype=torch.uint8)
        page = commit(layout, tiers, layer)
        store.write(layer, torch.arange(1, pages + 1), page.records, page.nbytes)
    assert store.audit() == []
    return store


def test_an_absent_page_reads_as_all_pruned() -> None:
    store = filled_store()
    store.free(torch.tensor([2]))
    for page in (0, 2):
        records = store.gather(1, torch.tensor([page]))
        assert not read_tiers(records, store.layout).any()
        assert not decode(records, store.layout, near=False).valid.any()


def test_bytes_behind_the_end_of_a_record_reach_no_other_page() -> None:
    """Whoever encodes need not clear what lies behind."""
    layout = small_layout()
    store = RecordStore(layout, 1, 2, "cpu")
    page = commit(layout, TIER_MAPS["all pruned"]((2, 32), 0)[None], seed=0)
    short = cut(page.records, layout, L.LEVEL_FAR)
    length = int(read_header(short, layout).nbytes[0])
    assert length < layout.record_bytes - layout.block_bytes
    short[:, length:] = 0xFF
    store.write(0, torch.tensor([1]), short, torch.tensor([length]))
    assert not store.gather(0, torch.tensor([2])).any()
    assert not decode(store.gather(0, torch.tensor([1])), layout, near=False).valid.any()
    assert store.audit() == []


def test_freed_blocks_serve_again_until_the_pool_is_full() -> None:
    """The worst case of every page fits at once, again and again."""
    layout = small_layout("k8v8,k8v8")
    store = RecordStore(layout, 1, 3, "cpu")
    page = commit(layout, torch.full((3, 2, 32), HIGH, dtype=torch.uint8), 0)
    for _ in range(5):
        store.write(0, torch.tensor([3, 1, 2]), page.records.clone(), page.nbytes)
        assert store.audit() == []
        store.free(torch.tensor([1, 2, 3]))
    assert int(store.ring.free_blocks) == store.num_blocks == 3 * layout.max_blocks


def test_store_size_is_counted() -> None:
    store = RecordStore(small_layout(), 2, 3, "cpu")
    tensors = (store.blocks, store.page_table)
    assert store.nbytes() == sum(t.numel() * t.element_size() for t in tensors) + store.ring.nbytes()
    assert store.blocks.shape == (2 * 3 * store.layout.max_blocks + 2, store.layout.block_bytes)


def head_words(store: RecordStore, layer: int = 1, page: int = 2) -> Tensor:
    """The header words of one record, to be tampered with."""
    return store.blocks.view(torch.int32)[int(store.page_table[layer, page])]


def _lose_a_block(store: RecordStore) -> None:
    store.ring.free_blocks -= 1


def _hold_a_block_twice(store: RecordStore) -> None:
    words, at = head_words(store), store.layout.list_word + 1
    words[at] = head_words(store, page=1)[at]


def _free_a_held_block(store: RecordStore) -> None:
    store.ring.give(store.page_table[1, 2])


def _forget_a_record(store: RecordStore) -> None:
    store.page_table[1, 2] = 0


def _tamper(word: Callable[[RecordLayout], int], by: int) -> Callable[[RecordStore], None]:
    def tamper(store: RecordStore) -> None:
        head_words(store)[word(store.layout)] += by

    return tamper


CORRUPTIONS: dict[str, tuple[Callable[[RecordStore], None], str]] = {
    "a lost block": (_lose_a_block, "1 blocks are lost: neither free nor held by a record"),
    "a block held twice": (_hold_a_block_twice, "1 blocks are both free and held, or held twice"),
    "a held block given back": (_free_a_held_block, "1 blocks are both free and held, or held twice"),
    "a record forgotten": (_forget_a_record, "blocks are lost"),
    "a wrong page": (_tamper(lambda lay: L.W_PAGE, 1), "1 records name another page than the page table"),
    "a wrong layer": (_tamper(lambda lay: L.W_LAYER, 1), "1 records name another layer than the page table"),
    "a wrong length": (_tamper(lambda lay: L.W_BYTES, 8), "1 records have another length than their counts say"),
    "a wrong block count": (_tamper(lambda lay: L.W_BLOCKS, 1), "block lists and block counts disagree"),
    "not a record": (_tamper(lambda lay: L.W_MAGIC, 1), "1 records are not records"),
    "another high count": (_tamper(lambda lay: lay.head_word, 1), "records have another length than their counts"),
    "high for low": (_tamper(lambda lay: lay.head_word, 1 - (1 << 16)), "differs from the headers'"),
    "another low count": (_tamper(lambda lay: lay.head_word, 1 << 16), "differs from the headers'"),
    "another level": (_tamper(lambda lay: L.W_LEVEL, -1), "1 records have another length than their counts say"),
}


@pytest.mark.parametrize("what", CORRUPTIONS)
def test_the_audit_says_what_is_wrong(what: str) -> None:
    corrupt, sentence = CORRUPTIONS[what]
    store = filled_store()
    corrupt(store)
    assert any(sentence in problem for problem in store.audit())
