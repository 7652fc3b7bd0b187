"""A learned strategy: predicts what it will cost that a token is gone, from the token's own key and value.

In the manner of KVzap, a linear predictor per (layer, KV head), fitted by ``leankv_sglang.calibrate`` on what pruning
really would have cost later queries; but of what the cache holds anyway, so that no model code is touched and
every rank needs its own heads alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from leankv_kernels.reference.tiers import WEIGHT_STEPS
from leankv_sglang.compression.significance.base import Significance


class Predictor(Significance):
    """See ``leankv_kernels.reference.tiers.predicted_cost``.

    Args:
        weights: ``[layers, H, F]``.
    """

    name: ClassVar[str] = "predictor"
    uses_thresholds: ClassVar[bool] = True
    score: ClassVar[str | None] = "predictor"

    def __init__(self, weights: Tensor) -> None:
        self.weights: Tensor = (weights.to(torch.float64) * WEIGHT_STEPS).round().to(torch.int64)
