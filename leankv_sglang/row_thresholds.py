"""Which thresholds each request row commits its pages with; rows are set when SGLang gives them to a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from leankv_kernels import Plan
from leankv_sglang.accuracy import Accuracy, accuracy_of
from leankv_sglang.config import LeanKVConfig, Thresholds


class RowThresholds:
    """Thresholds per request row, on the device.

    A row belongs to one request from allocation to release, so a forward needs no more than to gather by row; where no
    row has thresholds of its own it does not even do that.

    Args:
        num_rows: request rows.
        alphas: the server's own, float64 ``[layers, 3, H]``.
        config: what names of accuracies refer to.
        per_head: from a threshold to one for every layer and KV head, ``[layers, H]``.
    """

    def __init__(
        self, num_rows: int, alphas: Tensor, config: LeanKVConfig, per_head: Callable[[Thresholds], Tensor]
    ) -> None:
        self._config, self._per_head = config, per_head
        self._own = alphas
        self._rows = alphas[:, None].repeat(1, num_rows, 1, 1)
        self._given: dict[int, str] = {}

    def assign(self, reqs: Iterable[Any]) -> None:
        """Give the rows of SGLang requests the accuracy of their requests."""
        for req in reqs:
            self.set(req.kv.req_pool_idx, accuracy_of(req.cache_salt, self._config))

    def set(self, row: int, accuracy: Accuracy) -> None:
        """Give one row an accuracy."""
        if accuracy.spec == self._given.get(row, ""):
            return
        for i, value in enumerate(accuracy.alphas):
            own = self._own[:, i]
            self._rows[:, row, i] = own if accuracy.is_own else self._per_head(value)
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
