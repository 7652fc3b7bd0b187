"""No significance: the tier follows from the position alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from leankv_sglang.significance.base import Significance


class NoSignificance(Significance):
    """Every token but the sinks is low; recency alone (the near view) keeps tokens high."""

    name: ClassVar[str] = "none"
    uses_thresholds: ClassVar[bool] = False

    def __call__(self, column_scores: Tensor, num_kv_heads: int) -> Tensor:
        """See :class:`Significance`."""
        n, _, page = column_scores.shape
        return torch.zeros(n, num_kv_heads, page, dtype=torch.float64, device=column_scores.device)
