"""Committed pages whose true costs are on their way from the device to the ledger."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leankv_kernels import Ops, RecordStore
from leankv_kernels.store import Usage
from leankv_sglang.kvcache import transfer
from leankv_sglang.kvcache.ledger import Ledger, Pages
from leankv_sglang.kvcache.transfer import Arrival, CopyOut

_USAGE_WORDS = 2 * len(Usage._fields)
"""What the store's usage, int64, takes in a message of int32."""


@dataclass
class _Commit:
    pages: Pages
    epochs: Pages
    message: Arrival | None = None

    @property
    def is_sent(self) -> bool:
        """Whether the counts are on their way, or here."""
        return self.message is not None

    @property
    def arrival(self) -> Arrival:
        """The counts, of one that is sent."""
        assert self.message is not None
        return self.message

    @property
    def counts(self) -> Tensor:
        """int32 ``[n, 6]``, see ``RecordStore.count_pages``."""
        return self.arrival.values[_USAGE_WORDS:].view(-1, 6)


class CommitLog:
    """Counts of one forward's commits reach the ledger without stalling the device: at once on the host, one forward
    later from a GPU, when they have long arrived. One copy a forward carries them, and the store's usage. What a decode
    step has filled is announced in that step, and its counts are sent when it is committed, with the next forward.

    Over tensor-parallel ranks, whose heads differ in length, each page costs the most that it costs on any rank.

    Args:
        store: holds the records.
        ledger: learns their costs.
        ops: count blocks.
        copy_out: how the counts leave the device, by default as fits it.
    """

    def __init__(self, store: RecordStore, ledger: Ledger, ops: Ops, copy_out: CopyOut | None = None) -> None:
        self.store, self.ledger, self.ops = store, ledger, ops
        self._at_once = copy_out is None and store.blocks.device.type == "cpu"
        self._copy_out = copy_out or transfer.copy_out
        self.group: Any = None
        """Process group (host side) of the ranks that must agree, or None."""
        self._waiting: deque[_Commit] = deque()
        # A few, since the last may not have arrived; nobody may ask for long.
        self._usages: deque[Arrival] = deque(maxlen=4)
        self._usage = Usage(*[0] * len(Usage._fields))

    def add(self, pages: Tensor, ids: Pages) -> None:
        """Note pages that were committed in every layer by the forward just issued.

        Args:
            pages: int64 ``[n]``, on the device.
            ids: the same on the host.
        """
        self.announce(ids)
        self.send(self.ops.count_pages(self.store, pages))

    def announce(self, ids: Pages) -> None:
        """Note pages, by their ids on the host, that will be committed; :meth:`send` has to follow before the next."""
        assert self._all_sent, "pages were announced twice"
        ids = np.array(ids)  # may change its mind, see swap
        epochs = self.ledger.epoch[ids]
        self.ledger.expect(ids)
        self._waiting.append(_Commit(ids, epochs))

    def send(self, counts: Tensor) -> None:
        """Have the counts of what was announced sent, int32 ``[n, 6]`` on the device."""
        assert not self._all_sent, "counts of no pages"
        self._waiting[-1].message = self._send(torch.cat([self._usage_words(), counts.flatten()]))

    @property
    def _all_sent(self) -> bool:
        return not self._waiting or self._waiting[-1].is_sent

    def note_usage(self) -> None:
        """Have the store's usage sent: records were freed or cut."""
        if not self._at_once:
            self._send(self._usage_words().clone())

    def _usage_words(self) -> Tensor:
        return self.store.usage_counts.view(torch.int32)

    def _send(self, words: Tensor) -> Arrival:
        arrival = self._copy_out(words)
        self._usages.append(arrival)
        return arrival

    def settle(self, all_of_them: bool = False) -> None:
        """Hand costs over: of all forwards but the last issued, or of all, waiting for the device if need be."""
        sent = len(self._waiting) - (not self._all_sent)
        while sent and (all_of_them or self._waiting[0].arrival.event is None or sent > 1):
            commit, sent = self._waiting.popleft(), sent - 1
            commit.arrival.wait()
            self._note(commit)
            blocks = commit.counts[:, :3].contiguous()
            if self.group is not None:
                torch.distributed.all_reduce(blocks, torch.distributed.ReduceOp.MAX, group=self.group)
            self.ledger.settle(commit.pages, commit.epochs, blocks.numpy())

    def note_arrived(self) -> None:
        """Have the ledger know what pages hold whose counts are here, settled or not; does not wait."""
        for commit in self._waiting:
            if commit.message is not None and commit.message.here():
                self._note(commit)

    def _note(self, commit: _Commit) -> None:
        self.ledger.note_counts(commit.pages, commit.epochs, commit.counts.numpy())

    def usage(self) -> Usage:
        """The store's usage: now on a CPU, as it last arrived from a GPU; does not wait."""
        if self._at_once:
            return self.store.usage()
        while self._usages and self._usages[0].here():
            self._usage = Usage(*self._usages.popleft().values[:_USAGE_WORDS].view(torch.int64).tolist())
        return self._usage

    def swap(self, a: Pages, b: Pages) -> None:
        """Pages ``a`` and ``b`` exchange their records: counts on their way are of the other page then."""
        other = dict(zip(np.concatenate([a, b]).tolist(), np.concatenate([b, a]).tolist(), strict=True))
        for commit in self._waiting:
            alive = self.ledger.epoch[commit.pages] == commit.epochs
            for i in np.flatnonzero(alive).tolist():
                if (page := other.get(int(commit.pages[i]))) is not None:
                    commit.pages[i], commit.epochs[i] = page, self.ledger.epoch[page]

    @property
    def waiting(self) -> bool:
        """Whether costs of any page are still on their way."""
        return bool(self._waiting)

    def clear(self) -> None:
        """Forget what is on its way."""
        self._waiting.clear()
        self._usages.clear()
        self._usage = Usage(*[0] * len(Usage._fields))
