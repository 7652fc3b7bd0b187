"""No significance: the tier follows from the position alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from leankv_sglang.compression.significance.base import FullPages, Significance


class NoSignificance(Significance):
    """Every token but the sinks is low; recency alone (the near view) keeps tokens high."""

    name: ClassVar[str] = "none"
    uses_thresholds: ClassVar[bool] = False

    def __call__(self, layer: int, pages: FullPages) -> Tensor:
        """See :class:`Significance`."""
        n, page, heads, _ = pages.key.shape
        return torch.zeros(n, heads, page, dtype=torch.float64, device=pages.key.device)
