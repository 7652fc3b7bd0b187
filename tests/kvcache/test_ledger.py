"""The books: no unit is lost or made, a dead page is not settled for the next, deferred work keeps its order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from leankv_kernels import RecordLayout, RecordStore, get_ops
from leankv_kernels.layout import HIGH, LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR, TIERS
from leankv_kernels.reference.record import encode, read_header
from leankv_sglang.kvcache.deferred import DeferredWork
from leankv_sglang.kvcache.ledger import LOGICAL_FACTOR, Ledger

PAGE, WORST, PAGES = 16, 60, 6


class LedgerModel(RuleBasedStateMachine):
    """The ledger is a dictionary from page to (blocks at each level, level), and a sum."""

    @initialize()
    def create(self) -> None:
        self.ledger = Ledger(PAGES * PAGE, PAGE, WORST)
        self.open: dict[int, int] = {}
        self.known: dict[int, Any] = {}
        self.commits: list[tuple[int, int, list[int]]] = []
        self.told: dict[int, int] = {}
        self.ledger.on_reprice = self.hear

    def hear(self, pages: np.ndarray, delta: np.ndarray) -> None:
        for page, change in zip(pages.tolist(), delta.tolist(), strict=True):
            self.told[page] = self.told[page] + change

    def units(self, blocks: int) -> int:
        return max(-(-blocks * PAGE // WORST), 1)

    @rule(count=st.integers(1, 4), data=st.data())
    def take(self, count: int, data: st.DataObject) -> None:
        count = min(count, self.ledger.free_units // PAGE)
        free = [p for p in range(1, self.ledger.num_pages + 1) if p not in self.open]
        pages = free[:count]
        if pages:
            self.ledger.open(np.array(pages))
        for page in pages:
            self.open[page] = int(self.ledger.epoch[page])
            self.told[page] = PAGE
            levels = sorted(data.draw(st.lists(st.integers(1, WORST), min_size=3, max_size=3)))
            self.commits.append((page, self.open[page], levels))

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.open)), unique=True)) if self.open else []
        self.ledger.close(np.array(pages, np.int64))
        for page in pages:
            del self.open[page], self.told[page]
            self.known.pop(page, None)

    @rule(count=st.integers(1, 3))
    def settle(self, count: int) -> None:
        """Of pages that may be gone by now, or gone and handed out again."""
        now, self.commits = self.commits[:count], self.commits[count:]
        if now:
            pages, epochs, blocks = (np.array(x) for x in zip(*now, strict=True))
            unique = np.unique(pages, return_index=True)[1]
            self.ledger.settle(pages[unique], epochs[unique], blocks[unique])
            for i in unique:
                page, epoch, levels = now[i]
                if self.open.get(page) == epoch:
                    self.known[page] = (levels, LEVEL_NEAR)

    @rule(data=st.data(), level=st.sampled_from((LEVEL_BASE, LEVEL_FAR)))
    def cut(self, data: st.DataObject, level: int) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.known)), unique=True)) if self.known else []
        at = np.array(pages, np.int64)
        promised = int(self.ledger.gain(at, level)[self.ledger.level[at] > level].sum())
        assert self.ledger.cut(at, level) == promised
        for page in pages:
            levels, now = self.known[page]
            self.known[page] = (levels, min(now, level))

    @rule(data=st.data())
    def swap(self, data: st.DataObject) -> None:
        pages = data.draw(st.permutations(sorted(self.known)))
        half = len(pages) // 2
        a, b = pages[:half], pages[half : 2 * half]
        self.ledger.swap(np.array(a, np.int64), np.array(b, np.int64))
        for x, y in zip(a, b, strict=True):
            self.known[x], self.known[y] = self.known[y], self.known[x]

    @invariant()
    def books_agree(self) -> None:
        assert self.ledger.audit() == []
        for page in self.open:
            want = PAGE
            if page in self.known:
                levels, level = self.known[page]
                want = self.units(levels[level - 1])
            assert self.ledger.price[page] == want == self.told[page]
        assert self.ledger.free_units == PAGES * PAGE - sum(self.told.values())
        assert 0 < self.ledger.mean_price(LEVEL_FAR) <= self.ledger.mean_price(LEVEL_NEAR) <= 1


TestLedger = LedgerModel.TestCase
TestLedger.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_pages_outlast_units() -> None:
    """However small pages are, there is a logical page for every unit left."""
    ledger = Ledger(PAGES * PAGE, PAGE, WORST)
    opened = 0
    while ledger.free_units >= PAGE:
        opened += 1
        ledger.open(np.array([opened]))
        ledger.settle(np.array([opened]), ledger.epoch[[opened]], np.array([[0, 0, 0]]))
    assert (PAGES - 1) * LOGICAL_FACTOR < opened <= ledger.num_pages


def store_with(pages: list[int]) -> RecordStore:
    layout = RecordLayout(64, 1, 64, TIERS["k8v4"], TIERS["k4v2"])
    store = RecordStore(layout, 1, 4, "cpu")
    write(store, pages)
    return store


def write(store: RecordStore, pages: list[int]) -> None:
    key = torch.randn(len(pages), 1, 64, 64, dtype=torch.float64)
    tiers = torch.randint(1, 3, (len(pages), 1, 64))
    tiers[:, :, 0] = HIGH
    store.write(0, torch.tensor(pages), *encode(key, key, tiers, store.layout))


def test_orders_wait_and_keep_their_order() -> None:
    store = store_with([1, 2, 3])
    three = store.gather(0, torch.tensor([3]))
    deferred = DeferredWork(store, get_ops("cpu"))
    deferred.cut(np.array([1, 3]), LEVEL_FAR)
    deferred.swap(np.array([1]), np.array([2]))
    deferred.free(np.array([2]))
    assert int(read_header(store.gather(0, torch.tensor([2])), store.layout).level) == LEVEL_NEAR
    assert torch.equal(store.gather(0, torch.tensor([3])), three)
    assert deferred.run()
    assert not deferred.run()
    level = read_header(store.gather(0, torch.tensor([1, 2, 3])), store.layout).level.tolist()
    assert level == [LEVEL_NEAR, 0, LEVEL_FAR], "page 1 has what page 2 held, whole; page 2 is gone"
    assert store.audit() == []


def test_a_page_named_twice_is_freed_once_and_cut_as_deep_as_asked() -> None:
    """Freed, handed out, and freed again before any forward; trimmed and then demoted."""
    store = store_with([2, 3, 4])
    deferred = DeferredWork(store, get_ops("cpu"))
    deferred.cut(np.array([4]), LEVEL_FAR)
    deferred.cut(np.array([4]), LEVEL_BASE)
    deferred.free(np.array([3, 2]))
    deferred.free(np.array([3, 1, 2]))
    deferred.run()
    assert store.audit() == []
    assert int(read_header(store.gather(0, torch.tensor([4])), store.layout).level) == LEVEL_BASE
    deferred.free(np.array([4]))
    deferred.run()
    assert int(store.ring.free_blocks) == store.num_blocks


def test_forgotten_orders_are_not_carried_out() -> None:
    store = store_with([1])
    deferred = DeferredWork(store, get_ops("cpu"))
    deferred.free(np.array([1]))
    deferred.clear()
    assert not deferred.run()
    assert int(store.page_table[0, 1])
