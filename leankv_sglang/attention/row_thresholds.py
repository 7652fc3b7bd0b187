"""Which thresholds each request row commits its pages with; rows are set when SGLang gives them to a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from leankv_kernels import Plan
from leankv_sglang.compression.request_params import Accuracy, accuracy_of
from leankv_sglang.config import Alphas, LeanKVConfig

KEPT = 64
"""Accuracies whose tables are kept."""


class RowThresholds:
    """Thresholds per request row, on the device.

    A row belongs to one request from allocation to release, so a forward needs no more than to gather by row; where no
    row has thresholds of its own it does not even do that.

    Args:
        num_rows: request rows.
        config: the server's own thresholds, and what names of accuracies refer to.
        table: from thresholds to those of every layer and KV head, float64 ``[layers, 3, H]``.
    """

    def __init__(self, num_rows: int, config: LeanKVConfig, table: Callable[[Alphas], Tensor]) -> None:
        self._config, self._table = config, lru_cache(KEPT)(table)
        self._rows = self._table(config.alphas)[:, None].repeat(1, num_rows, 1, 1)
        self._given: dict[int, str] = {}

    def assign(self, reqs: Iterable[Any]) -> None:
        """Give the rows of SGLang requests the accuracy of their requests."""
        for req in reqs:
            self.set(req.kv.req_pool_idx, accuracy_of(req.cache_salt, self._config))

    def set(self, row: int, accuracy: Accuracy) -> None:
        """Give one row an accuracy."""
        if accuracy.spec == self._given.get(row, ""):
            return
        self._rows[:, row] = self._table(accuracy.alphas)
        if accuracy.is_own:
            del self._given[row]
        else:
            self._given[row] = accuracy.spec

    def reset(self, rows: Sequence[int]) -> None:
        """Give rows the server's own accuracy."""
        if held := self._given.keys() & set(rows):
            own = accuracy_of(None, self._config)
            for row in held:
                self.set(row, own)

    def of_full_pages(self, plan: Plan) -> Tensor | None:
        """Thresholds ``[layers, f, 3, H]`` of the pages that a forward commits; None where no row has its own."""
        if not self._given or not plan.full.numel():
            return None
        rows = plan.rows.index_select(0, plan.full)
        return self._rows.index_select(1, rows)


_OF_POOL: WeakKeyDictionary[Any, RowThresholds] = WeakKeyDictionary()


def keep_rows(req_to_token_pool: Any, rows: RowThresholds) -> None:
    """Have :func:`assign_rows` find the thresholds of a pool's rows."""
    _OF_POOL[req_to_token_pool] = rows


def assign_rows(req_to_token_pool: Any, reqs: Iterable[Any]) -> None:
    """Give rows just allocated from an SGLang ``ReqToTokenPool`` the accuracy of their requests; the pool of another
    engine in this process, which has no thresholds, is left alone."""
    if (rows := _OF_POOL.get(req_to_token_pool)) is not None:
        rows.assign(reqs)
