"""Bytes and tokens of every tier by layer and KV head, from the records' own headers, a few pages at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from leankv_sglang.kvcache.pool import LeanKVPool
from leankv_sglang.kvcache.transfer import copy_out, put
from leankv_sglang.observability.live.scheduler.slices import PieceSize


def read_heads(pool: LeanKVPool, emit: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """The task; emits ``shape`` and ``counts``, int64 ``[layers, H, 5]``: bytes, then tokens that are high, mid, low
    and pruned."""
    ledger, store, size = pool.ledger, pool.store, PieceSize(1)
    pages = np.flatnonzero((ledger.price > 0) & ledger.settled)
    total = torch.zeros(pool.layer_num, pool.head_num, 5, dtype=torch.int64, device=store.blocks.device)
    at = 0
    while at < len(pages):
        yield
        size.begin()
        part = pages[at : at + size.size]
        at += len(part)
        total += pool.ops.count_heads(store, put(part, store.blocks.device))
        size.end()
    arrival = copy_out(total)
    while not arrival.here():
        yield
    emit({"shape": list(total.shape), "counts": arrival.values.numpy().tobytes(), "pages": len(pages)})
