"""The contract of a significance strategy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor


class FullPages(NamedTuple):
    """What was observed of n full pages of one layer: all a strategy may look at."""

    column_scores: Tensor
    """Integers ``[n, Hq, P]``, see ``leankv_kernels.reference.attention.attend_open``."""
    key: Tensor
    """Raw ``[n, P, H, D]``, after RoPE."""
    value: Tensor
    """Raw ``[n, P, H, D]``."""

    @property
    def num_kv_heads(self) -> int:
        """H."""
        return self.key.shape[2]


class Significance(ABC):
    """Maps what was observed of full pages to one number per (token, KV head)."""

    name: ClassVar[str]
    uses_thresholds: ClassVar[bool]
    """Whether alpha_high and alpha_low mean anything to it."""

    @abstractmethod
    def __call__(self, layer: int, pages: FullPages) -> Tensor:
        """Significance of n full pages of a layer.

        Returns:
            float64 ``[n, H, P]``, at least 0, compared with the thresholds (``choose_tiers``).
        """
