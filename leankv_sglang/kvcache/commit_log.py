"""Committed pages whose true costs are on their way from the device to the ledger."""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leankv_kernels import Ops, RecordStore
from leankv_sglang.kvcache.ledger import Ledger, Pages


class _Commit(NamedTuple):
    pages: Pages
    epochs: Pages
    blocks: Tensor  # int32 [n, 3], in host memory once the event has passed
    event: Any  # torch.cuda.Event, or None where the device is the host


class CommitLog:
    """Counts of one forward's commits reach the ledger without stalling the device: at once on the host, one forward
    later from a GPU, when they have long arrived.

    Over tensor-parallel ranks, whose heads differ in length, each page costs the most that it costs on any rank.

    Args:
        store: holds the records.
        ledger: learns their costs.
        ops: count blocks.
    """

    def __init__(self, store: RecordStore, ledger: Ledger, ops: Ops) -> None:
        self.store, self.ledger, self.ops = store, ledger, ops
        self.group: Any = None
        """Process group (host side) of the ranks that must agree, or None."""
        self._waiting: deque[_Commit] = deque()

    def add(self, pages: Tensor) -> None:
        """Note pages int64 ``[n]`` that were committed in every layer by the forward just issued."""
        blocks = self.ops.count_blocks(self.store, pages)
        ids, event = pages.cpu().numpy(), None
        if blocks.device.type != "cpu":
            host = torch.empty(blocks.shape, dtype=blocks.dtype, pin_memory=True)
            blocks = host.copy_(blocks, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._waiting.append(_Commit(ids, self.ledger.epoch[ids], blocks, event))

    def settle(self, all_of_them: bool = False) -> None:
        """Hand costs over: of all forwards but the last issued, or of all, waiting for the device if need be."""
        while self._waiting and (all_of_them or self._waiting[0].event is None or len(self._waiting) > 1):
            commit = self._waiting.popleft()
            if commit.event is not None:
                commit.event.synchronize()
            if self.group is not None:
                torch.distributed.all_reduce(commit.blocks, torch.distributed.ReduceOp.MAX, group=self.group)
            self.ledger.settle(commit.pages, commit.epochs, commit.blocks.numpy())

    @property
    def waiting(self) -> bool:
        """Whether costs of any page are still on their way."""
        return bool(self._waiting)

    def clear(self) -> None:
        """Forget what is on its way."""
        self._waiting.clear()
