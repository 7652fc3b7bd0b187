"""Which thresholds each request row commits its pages with; rows are set when SGLang gives them to a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from leankv_sglang.compression.request_params import Accuracy, accuracy_of
from leankv_sglang.config import Alphas, LeanKVConfig

KEPT = 64
"""Accuracies whose tables are kept."""


class RowThresholds:
    """Thresholds per request row: which row has which is known on the host, the tables themselves are on the device.

    A row belongs to one request from allocation to release. A forward takes what its rows have when it is planned, so
    nothing that happens to rows afterwards can race with it; where no row has thresholds of its own it takes nothing.

    Args:
        config: the server's own thresholds, and what names of accuracies refer to.
        table: from thresholds to those of every layer and KV head, float64 ``[layers, 3, H]``.
    """

    def __init__(self, config: LeanKVConfig, table: Callable[[Alphas], Tensor]) -> None:
        self._config, self._table = config, lru_cache(KEPT)(table)
        self._own = table(config.alphas)
        self._given: dict[int, Tensor] = {}

    def assign(self, reqs: Iterable[Any]) -> None:
        """Give the rows of SGLang requests the accuracy of their requests."""
        for req in reqs:
            self.set(req.kv.req_pool_idx, accuracy_of(req.cache_salt, self._config))

    def set(self, row: int, accuracy: Accuracy) -> None:
        """Give one row an accuracy."""
        if accuracy.is_own:
            self._given.pop(row, None)
        else:
            self._given[row] = self._table(accuracy.alphas)

    def reset(self, rows: Sequence[int]) -> None:
        """Give rows the server's own accuracy."""
        for row in rows:
            self._given.pop(row, None)

    def of_rows(self, rows: Sequence[int]) -> Tensor | None:
        """Thresholds ``[layers, n, 3, H]`` of rows; None where none of them has its own."""
        if not any(row in self._given for row in rows):
            return None
        return torch.stack([self._given.get(row, self._own) for row in rows], dim=1)


_OF_POOL: WeakKeyDictionary[Any, RowThresholds] = WeakKeyDictionary()


def keep_rows(req_to_token_pool: Any, rows: RowThresholds) -> None:
    """Have :func:`assign_rows` find the thresholds of a pool's rows."""
    _OF_POOL[req_to_token_pool] = rows


def assign_rows(req_to_token_pool: Any, reqs: Iterable[Any]) -> None:
    """Give rows just allocated from an SGLang ``ReqToTokenPool`` the accuracy of their requests; the pool of another
    engine in this process, which has no thresholds, is left alone."""
    if (rows := _OF_POOL.get(req_to_token_pool)) is not None:
        rows.assign(reqs)
