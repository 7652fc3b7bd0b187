"""No significance: the tier follows from the position alone."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from leankv_kernels.reference.tiers import significance_of
from leankv_sglang.compression.significance.base import FullPages, Significance


class NoSignificance(Significance):
    """Every token but the sinks is low; recency alone (the near view) keeps tokens high."""

    name: ClassVar[str] = "none"
    uses_thresholds: ClassVar[bool] = False
    score: ClassVar[str | None] = "none"

    def __call__(self, layer: int | slice, pages: FullPages) -> Tensor:
        """See :class:`Significance`."""
        return significance_of("none", None, pages)
