"""A learned strategy: predicts what it will cost that a token is gone, from the token's own key and value.

In the manner of KVzap, a linear predictor per (layer, KV head), fitted by ``leankv_sglang.calibrate`` on what pruning
really would have cost later queries; but of what the cache holds anyway, so that no model code is touched and
every rank needs its own heads alone.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from leankv_kernels.reference.commit import mean_attention
from leankv_sglang.compression.significance.base import FullPages, Significance

_FEATURE_STEPS, _WEIGHT_STEPS = 4096.0, 65536.0
_LEAST_ATTENTION, _LEAST_ENERGY = 1e-4, 1e-8
_LARGEST = 25.0
"""Logarithm of the largest significance."""


def num_features(head_dim: int) -> int:
    """Features of a token: value, energies of pairs of key channels, attention, two norms, one."""
    return head_dim + head_dim // 2 + 4


def features(pages: FullPages) -> Tensor:
    """What the predictor looks at, float64 ``[n, H, P, F]``.

    RoPE turns channels i and i + D/2 of a key together, so the energy of the pair does not depend on the position.
    """
    key, value = (x.to(torch.float64).transpose(1, 2) for x in (pages.key, pages.value))
    first, second = key.square().chunk(2, dim=-1)
    attention = mean_attention(pages.column_scores, pages.num_kv_heads)[..., None]
    norms = [x.square().sum(-1, keepdim=True).clamp(min=_LEAST_ENERGY).log() for x in (value, key)]
    energies = (first + second).clamp(min=_LEAST_ENERGY).log()
    return torch.cat(
        [value, energies, attention.clamp(min=_LEAST_ATTENTION).log(), *norms, torch.ones_like(attention)], dim=-1
    )


class Predictor(Significance):
    """The exponential of a weighted sum of :func:`features`: the KL by which a later query would miss the token.

    Features and weights are rounded to steps and summed as integers, so the order of the sum does not matter.

    Args:
        weights: ``[layers, H, F]``.
    """

    name: ClassVar[str] = "predictor"
    uses_thresholds: ClassVar[bool] = True

    def __init__(self, weights: Tensor) -> None:
        self._weights = (weights.to(torch.float64) * _WEIGHT_STEPS).round().to(torch.int64)

    def __call__(self, layer: int, pages: FullPages) -> Tensor:
        """See :class:`Significance`."""
        seen = (features(pages) * _FEATURE_STEPS).round().to(torch.int64)
        total = (seen * self._weights[layer][None, :, None]).sum(-1)
        return (total.to(torch.float64) / (_FEATURE_STEPS * _WEIGHT_STEPS)).clamp(max=_LARGEST).exp()
