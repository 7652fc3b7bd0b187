"""The block ring against a simple model."""

from __future__ import annotations

from collections import deque
from itertools import chain

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from leankv_kernels import BlockRing
from tests.kernels.kernelutil import few

WIDTH = 5


class RingModel(RuleBasedStateMachine):
    """The ring is a queue of free ids."""

    @initialize(num_blocks=st.integers(1, 12))
    def create(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.ring = BlockRing(num_blocks, "cpu")
        self.free, self.held = deque(range(1, num_blocks + 1)), list[int]()

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        counts, left = [], len(self.free)
        for _ in range(data.draw(st.integers(0, 4))):
            counts.append(data.draw(st.integers(0, min(left, WIDTH))))
            left -= counts[-1]
        got = self.ring.take(torch.tensor(counts, dtype=torch.int64), WIDTH)
        wanted = [[self.free.popleft() for _ in range(n)] for n in counts]
        assert got.dtype == torch.int32
        assert got.tolist() == [ids + [0] * (WIDTH - len(ids)) for ids in wanted]
        self.held += chain(*wanted)

    @rule()
    def take_everything(self) -> None:
        counts = torch.tensor([len(self.free)])
        assert self.ring.take(counts, self.num_blocks)[0, : len(self.free)].tolist() == list(self.free)
        self.held += self.free
        self.free.clear()

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        """In any order, zeros in between."""
        back = data.draw(st.lists(st.sampled_from(self.held), unique=True)) if self.held else []
        with_zeros = [x for i in back for x in ([i, 0] if data.draw(st.booleans()) else [i])]
        self.ring.give(torch.tensor([[*with_zeros, 0]], dtype=torch.int32))
        self.free += back
        self.held = [i for i in self.held if i not in back]

    @rule()
    def clear(self) -> None:
        self.ring.clear()
        self.free, self.held = deque(range(1, self.num_blocks + 1)), []

    @invariant()
    def the_ring_knows_what_is_free(self) -> None:
        assert int(self.ring.free_blocks) == len(self.free)
        assert self.ring.free_ids().tolist() == list(self.free)


TestRing = RingModel.TestCase
TestRing.settings = few(100)


def test_ring_size_is_counted() -> None:
    ring = BlockRing(10, "cpu")
    assert ring.nbytes() == 4 * (10 + 1) + 8 + 8
