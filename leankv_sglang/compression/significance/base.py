"""The contract of a significance strategy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from leankv_kernels import FullPages

__all__ = ["FullPages", "Significance"]


class Significance(ABC):
    """Maps what was observed of full pages to one number per (token, KV head).

    Attributes:
        score: what the kernels' own ``tier_pages`` computes instead, one of ``leankv_kernels.tier_rule.SCORES``; None
            for a strategy that they do not know, which is then asked itself.
        weights: what goes with it.
    """

    name: ClassVar[str]
    uses_thresholds: ClassVar[bool]
    """Whether alpha_high and alpha_low mean anything to it."""
    score: ClassVar[str | None] = None
    weights: Tensor | None = None

    @abstractmethod
    def __call__(self, layer: int | slice, pages: FullPages) -> Tensor:
        """Significance of n full pages of a layer, or of several, which lead in all shapes.

        Returns:
            float64 ``[..., n, H, P]``, at least 0, compared with the thresholds (``choose_tiers``).
        """
