"""Counts on their way: nobody waits for them, reports take the worst until they are here, swaps do not lose them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from leankv_kernels import RecordLayout, RecordStore, get_ops
from leankv_kernels.layout import LEVEL_FAR, TIERS
from leankv_kernels.reference.record import encode
from leankv_sglang.kvcache.commit_log import CommitLog
from leankv_sglang.kvcache.ledger import Ledger
from tests.kvcache.late import LateCopies

PAGE = 64


class Books:
    """A store of six pages with its ledger, and a log whose copies are late."""

    def __init__(self) -> None:
        layout = RecordLayout(PAGE, 1, 64, TIERS["k8v4"], TIERS["k4v2"])
        self.store = RecordStore(layout, 1, 96, "cpu", 6 * layout.max_blocks)
        self.ledger = Ledger(6 * PAGE, PAGE, layout.max_blocks)
        self.late = LateCopies()
        self.log = CommitLog(self.store, self.ledger, get_ops("cpu"), self.late)

    def commit(self, *pages: int, high: int = 8) -> None:
        ids = np.array(pages)
        self.ledger.open(ids)
        key = torch.randn(len(pages), 1, PAGE, 64, dtype=torch.float64)
        tiers = (torch.arange(PAGE) < high).long().expand(len(pages), 1, -1) + 1
        self.store.write(0, torch.from_numpy(ids), *encode(key, key, tiers, self.store.layout))
        self.log.add(torch.from_numpy(ids), ids)

    def true_blocks(self, *pages: int) -> np.ndarray:
        return self.store.level_blocks(torch.tensor(pages)).numpy()[:, -1]


def test_reports_take_the_worst_until_counts_are_here() -> None:
    books = Books()
    books.commit(1)
    books.commit(2)
    books.late.events[0].passed = True
    books.log.note_arrived()
    held = books.ledger.blocks_held(np.array([1, 2, 3]))
    assert held.tolist() == [books.true_blocks(1)[0], books.store.layout.max_blocks, 0]
    assert not books.ledger.settled[:4].any(), "prices are another matter: the ranks agree on them"
    assert books.late.waits == 0
    books.log.settle()
    assert books.ledger.settled[:4].tolist() == [False, True, False, False]
    books.log.settle(all_of_them=True)
    assert books.late.waits == 1
    assert books.ledger.blocks_held(np.array([2])) == books.true_blocks(2)


def test_tiers_are_told_of_pages_whose_counts_are_here() -> None:
    books, both = Books(), np.array([1, 2, 3])
    books.commit(1, high=8)
    books.commit(2, high=PAGE)
    assert books.ledger.tokens_held(both)[0] == 0
    books.late.events[0].passed = True
    books.log.note_arrived()
    known, tokens = books.ledger.tokens_held(both)
    assert (known, tokens.tolist()) == (1, [8, 0, PAGE - 8])
    books.log.settle(all_of_them=True)
    known, tokens = books.ledger.tokens_held(both)
    assert (known, tokens.tolist()) == (2, [8 + PAGE, 0, PAGE - 8])
    books.ledger.swap(np.array([1]), np.array([2]))
    assert books.ledger.tokens_held(np.array([1]))[1].tolist() == [PAGE, 0, 0]
    books.ledger.close(np.array([1]))
    books.ledger.open(np.array([1]))
    assert books.ledger.tokens_held(np.array([1]))[0] == 0


def test_counts_follow_records_that_are_exchanged() -> None:
    """A request's page, just committed, makes a cut page of the tree whole and takes its shorter record."""
    books = Books()
    books.commit(1, high=0)
    books.log.settle(all_of_them=True)
    books.ledger.cut(np.array([1]), LEVEL_FAR)
    cut = int(books.ledger.price[1])
    books.commit(2, 3, high=PAGE)
    books.log.swap(np.array([1]), np.array([2]))
    books.ledger.swap(np.array([1]), np.array([2]))
    books.store.swap(torch.tensor([1]), torch.tensor([2]))
    assert books.ledger.price[[1, 2]].tolist() == [PAGE, cut], "at its worst until the counts are here"
    assert books.ledger.settled[[1, 2]].tolist() == [False, True]
    books.ledger.close(np.array([2]))
    books.log.settle(all_of_them=True)
    assert books.ledger.price[1] == books.ledger.units_of(books.true_blocks(1))[0]
    assert books.ledger.blocks_held(np.array([1])) == books.true_blocks(1)
    assert books.ledger.settled[[1, 3]].all()
    assert books.ledger.price[2] == 0


def test_usage_is_what_the_last_copy_that_arrived_said() -> None:
    books = Books()
    books.commit(1)
    first = books.store.usage()
    books.commit(2)
    assert books.log.usage().records == 0
    books.late.events[0].passed = True
    assert books.log.usage() == first
    books.store.free(torch.tensor([1]))
    books.log.note_usage()
    books.late.arrive()
    assert books.log.usage() == books.store.usage()
    assert books.late.waits == 0
    books.log.clear()
    assert books.log.usage().records == 0


def test_on_a_cpu_usage_is_what_it_is_now() -> None:
    books = Books()
    log = CommitLog(books.store, books.ledger, get_ops("cpu"))
    books.commit(1)
    assert log.usage() == books.store.usage()
    assert log.usage().records == 1


def test_a_rank_reports_its_own_blocks_at_the_price_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    books = Books()
    books.log.group = "the ranks"

    def all_reduce(blocks: torch.Tensor, _op: Any, group: Any) -> None:
        assert group == "the ranks"
        blocks += 1

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    books.commit(1)
    books.log.settle(all_of_them=True)
    own = books.true_blocks(1)
    assert books.ledger.blocks_held(np.array([1])) == own
    assert books.ledger.price[1] == books.ledger.units_of(own + 1)[0]
