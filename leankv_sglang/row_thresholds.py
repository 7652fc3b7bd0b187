"""Which thresholds each request row commits its pages with; rows are set when SGLang gives them to a request."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from leankv_kernels import Plan
from leankv_sglang.accuracy import Accuracy, accuracy_of
from leankv_sglang.config import LeanKVConfig, Thresholds
from leankv_sglang.read_rule import PageThresholds


class RowThresholds:
    """Thresholds per request row, on the device.

    A row belongs to one request from allocation to release, so a forward needs no more than to gather by row; where no
    row has thresholds of its own it does not even do that.

    Args:
        num_rows: request rows.
        alpha_high, alpha_low: the server's own, float64 ``[layers, H]``.
        config: what names of accuracies refer to.
    """

    def __init__(self, num_rows: int, alpha_high: Tensor, alpha_low: Tensor, config: LeanKVConfig) -> None:
        self._config = config
        self._own = (alpha_high, alpha_low)
        self._high, self._low = (own[:, None].repeat(1, num_rows, 1) for own in self._own)
        self._given: dict[int, str] = {}

    def assign(self, reqs: Iterable[Any]) -> None:
        """Give the rows of SGLang requests the accuracy of their requests."""
        for req in reqs:
            self.set(req.kv.req_pool_idx, accuracy_of(req.cache_salt, self._config))

    def set(self, row: int, accuracy: Accuracy) -> None:
        """Give one row an accuracy."""
        if accuracy.spec == self._given.get(row, ""):
            return
        self._high[:, row], self._low[:, row] = (
            own if accuracy.is_own else self._per_head(value, own)
            for value, own in zip((accuracy.high, accuracy.low), self._own, strict=True)
        )
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

    def of_full_pages(self, plan: Plan) -> PageThresholds | None:
        """Thresholds of the pages that a forward commits; None where the server's own are those of all rows."""
        if not self._given or not plan.full.numel():
            return None
        rows = plan.rows.index_select(0, plan.full)
        return PageThresholds(self._high.index_select(1, rows), self._low.index_select(1, rows))

    @staticmethod
    def _per_head(value: Thresholds, own: Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=own.dtype, device=own.device).expand_as(own)
