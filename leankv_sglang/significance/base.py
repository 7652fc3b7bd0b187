"""The contract of a significance strategy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor


class Significance(ABC):
    """Maps what was observed of full pages to one number per (token, KV head)."""

    name: ClassVar[str]
    uses_thresholds: ClassVar[bool]
    """Whether alpha_high and alpha_low mean anything to it."""

    @abstractmethod
    def __call__(self, column_scores: Tensor, num_kv_heads: int) -> Tensor:
        """Significance of n full pages.

        Args:
            column_scores: integers ``[n, Hq, P]``, see ``leankv_kernels.reference.attention.attend_open``.
            num_kv_heads: H.

        Returns:
            float64 ``[n, H, P]``, compared with the thresholds: high above alpha_high, low from alpha_low on.
        """
