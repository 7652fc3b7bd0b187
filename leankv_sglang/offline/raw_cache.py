"""The exact cache for packed sequences: 16-bit keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from leankv_sglang.models.shape import ModelShape
from leankv_sglang.offline.caches import Cache, State
from leankv_sglang.offline.raw_rows import RawRows, Rule


class RawCache(Cache[State]):
    """The uncompressed cache, rows of tokens that grow to the largest sequence.

    Args:
        shape: the model's.
        rows: sequences at a time.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self, shape: ModelShape, rows: int, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(rows, dtype, device)
        self.shape = shape
        self.kept = RawRows(rows, dtype, device)
        self.rows = list(range(rows))

    def new(self, capacity: int) -> State:
        """See :meth:`Cache.new`."""
        self.kept.reserve(capacity)
        self.windows.reserve(capacity)
        return State(0, self.rows.pop())

    def fork(self, state: State, capacity: int) -> State:
        """See :meth:`Cache.fork`; copies."""
        other = self.new(capacity)
        other.length = state.length
        for rows in (self.kept, self.windows):
            rows.copy(state.row, other.row, state.length)
        return other

    def free(self, state: State) -> None:
        """See :meth:`Cache.free`."""
        self.rows.append(state.row)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """See :meth:`Cache.attend`."""
        return self.attend_raw(self.kept, layer, q, k, v, rule)

    def context_bytes(self, state: State) -> int:
        """See :meth:`Cache.context_bytes`."""
        return state.length * self.shape.token_bytes
