"""KV state of packed sequences: what the exact cache (``raw_cache``) and ours (``lean_cache``) have in common.

Both have one interface, so that everything around attention is the same. A forward is ``begin``, one ``attend`` per
layer, ``end``. Layers with a sliding window have raw rows in both, and are counted in neither.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from leankv_sglang.offline.raw_rows import RawRows, Rule, exact, exact_decode


@dataclass(eq=False)
class State:
    """One sequence in a cache."""

    length: int = 0
    """Tokens held."""
    row: int = 0
    """Of the cache's memory."""


S = TypeVar("S", bound=State)


class Cache(ABC, Generic[S]):
    """Sequences of one model; a forward runs over new tokens of several of them, in the order of ``begin``.

    Args:
        rows: sequences at a time.
        dtype: of raw keys and values.
        device: where they live.
    """

    tokens = 0
    """Tokens of the forward that has begun."""

    def __init__(self, rows: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self.device = device
        self.windows = RawRows(rows, dtype, device)
        # One call for all rows that decode: on a GPU a call costs more than reading to the longest row's end.
        self.together = torch.device(device).type != "cpu"
        self._lengths: list[int] = []
        self._row_ids = self._ends = torch.empty(0)

    @abstractmethod
    def new(self, capacity: int) -> S:
        """An empty sequence that will hold at most ``capacity`` tokens."""

    @abstractmethod
    def fork(self, state: S, capacity: int) -> S:
        """Another sequence that continues what ``state`` holds."""

    @abstractmethod
    def free(self, state: S) -> None:
        """Give up a sequence."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """Causal attention of the forward's new tokens, to all before.

        Args:
            layer: which of the layers without a window.
            q: ``[T, Hq, D]``.
            k, v: ``[T, H, D]`` and ``[T, H, Dv]``, keys after RoPE.
            rule: scale, cap and sinks.

        Returns:
            out ``[T, Hq, Dv]`` in the dtype of ``q``.
        """

    @abstractmethod
    def context_bytes(self, state: S) -> int:
        """Physical bytes of a sequence as a pool under pressure holds it, without windows."""

    def attend_window(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """:meth:`attend` for a layer with a window, numbered as the model does."""
        return self.attend_raw(self.windows, layer, q, k, v, rule)

    def attend_raw(self, rows: RawRows, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """Write the forward's tokens to raw rows, and attend exactly."""
        keys, values = rows.of(layer, k, v)
        if self.together and self.tokens == len(self.batch):
            keys[self._row_ids, :, self._ends - 1], values[self._row_ids, :, self._ends - 1] = k, v
            longest = max(self._lengths)
            keys, values = (x[:, :, :longest].index_select(0, self._row_ids) for x in (keys, values))
            return exact_decode(q, keys, values, self._ends, rule)
        outs, first = [], 0
        for (state, count), last in zip(self.batch, self._lengths, strict=True):
            span = slice(first, first + count)
            keys[state.row, :, state.length : last] = k[span].transpose(0, 1)
            values[state.row, :, state.length : last] = v[span].transpose(0, 1)
            outs.append(exact(q[span], keys[state.row, :, :last], values[state.row, :, :last], rule))
            first += count
        return torch.cat(outs)

    def begin(self, batch: Sequence[tuple[S, int]]) -> None:
        """Start a forward of so many new tokens of each sequence, no sequence twice."""
        self.batch = list(batch)
        self.tokens = sum(count for _, count in batch)
        self._lengths = [state.length + count for state, count in batch]
        if self.together:
            self._row_ids = torch.tensor([state.row for state, _ in batch], device=self.device)
            self._ends = torch.tensor(self._lengths, device=self.device)

    def end(self) -> None:
        """The forward has run through every layer."""
        for state, count in self.batch:
            state.length += count
