"""The contract of a significance strategy."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from leankv_kernels import FullPages
from leankv_kernels.reference.tiers import significance_of

__all__ = ["FullPages", "Significance"]


class Significance:
    """Maps what was observed of full pages to one number per (token, KV head).

    Attributes:
        score: what the kernels' own ``tier_pages`` computes, one of ``leankv_kernels.tier_rule.SCORES``; None for a
            strategy that they do not know, which is then called itself.
        weights: what goes with the score, ``[layers, ...]``.
    """

    name: ClassVar[str]
    uses_thresholds: ClassVar[bool]
    """Whether alpha_high and alpha_low mean anything to it."""
    score: ClassVar[str | None] = None
    weights: Tensor | None = None

    def __call__(self, layer: int | slice, pages: FullPages) -> Tensor:
        """Significance of n full pages of a layer, or of several, which lead in all shapes.

        Returns:
            float64 ``[..., n, H, P]``, at least 0, compared with the thresholds (``choose_tiers``).

        Raises:
            NotImplementedError: for a strategy that has neither a score nor a method of its own.
        """
        if self.score is None:
            raise NotImplementedError(f"{type(self).__name__} does not say what a token is worth")
        return significance_of(self.score, None if self.weights is None else self.weights[layer], pages)
