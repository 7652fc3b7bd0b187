"""KV state of packed sequences: what the exact cache (``raw_cache``) and ours (``lean_cache``) have in common.

Both have one interface, so that everything around attention is the same. A forward is ``begin``, one ``attend`` per
layer, ``end``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor


@dataclass(eq=False)
class State:
    """One sequence in a cache."""

    length: int = 0
    """Tokens held."""


S = TypeVar("S", bound=State)


class Cache(ABC, Generic[S]):
    """Sequences of one model; a forward runs over new tokens of several of them, in the order of ``begin``."""

    tokens = 0
    """Tokens of the forward that has begun."""

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
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Causal attention of the forward's new tokens.

        Args:
            q: ``[T, Hq, D]``.
            k, v: ``[T, H, D]``, keys after RoPE.

        Returns:
            out ``[T, Hq, D]`` in the dtype of ``q``.
        """

    @abstractmethod
    def context_bytes(self, state: S) -> int:
        """Physical bytes of a sequence as a pool under pressure holds it."""

    def begin(self, batch: Sequence[tuple[S, int]]) -> None:
        """Start a forward of so many new tokens of each sequence, no sequence twice."""
        self.batch = list(batch)
        self.tokens = sum(count for _, count in batch)

    def end(self) -> None:
        """The forward has run through every layer."""
        for state, count in self.batch:
            state.length += count
