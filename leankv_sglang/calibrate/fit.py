"""Fits the predictor: what it would have cost later queries that a token is gone, from the token's own features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leankv_kernels import FullPages
from leankv_kernels.reference.tiers import features
from leankv_sglang.calibrate.capture import Layer
from leankv_sglang.calibrate.sensitivity import QUERY_BLOCK
from leankv_sglang.offline.raw_rows import Rule

RIDGE = 0.002
"""Weight of the squared coefficients of standardized features, per token."""
FLAT = 1e-4
"""Spread of a feature, beside its mean, up to which it counts as a constant."""
_LEAST = 1e-12
_MOST_WEIGHT = 0.95


def harm(seen: Layer, near_pages: int, page: int) -> Tensor:
    """Mean KL ``[H, T]`` per query that would read a token in the far view, were that token alone pruned; NaN where
    there is no such query.

    To first order: the output moves by the token's weight times its value's distance from the output.
    """
    heads, tokens, _ = seen.k.shape
    group = seen.q.shape[0] // heads
    position = torch.arange(tokens, device=seen.k.device)
    total = torch.zeros(heads, tokens, dtype=torch.float64, device=seen.k.device)
    for start in range(0, tokens, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, tokens)
        t, keys = position[start:stop, None], position[None, :stop]
        away = (keys // page < t // page - near_pages)[None]
        for head in range(heads):
            rows = slice(head * group, (head + 1) * group)
            scores = seen.scores(seen.q[rows, start:stop], seen.k[head, :stop]).masked_fill(keys > t, float("-inf"))
            sinks = None if seen.sinks is None else seen.sinks[rows]
            weight = Rule(seen.scale, sinks=sinks).weights(scores)
            moved = (weight / (1 - weight.clamp(max=_MOST_WEIGHT))).masked_fill_(~away, 0.0)
            for grad in seen.grads:
                slope = grad[rows, start:stop]
                at_output = (slope * seen.out[rows, start:stop]).sum(-1, keepdim=True)
                effect = (moved * (at_output - slope @ seen.v[head, :stop].T)).sum(0)
                total[head, :stop] += 0.5 * effect.double().square().sum(0) / len(seen.grads)
    readers = tokens - (position // page + 1 + near_pages) * page
    return torch.where(readers > 0, total / readers.clamp(min=1), torch.nan)


def fit(windows: Sequence[Layer], pages: Sequence[FullPages], near_pages: int) -> Tensor:
    """Weights ``[H, F]`` of one layer: ridge regression of the logarithm of :func:`harm`, rounded as a profile has
    them.

    Args:
        windows: the layer over each window.
        pages: what a strategy sees of each.
        near_pages: pages of near view.
    """
    seen, wanted = [], []
    for layer, full in zip(windows, pages, strict=True):
        cost = harm(layer, near_pages, full.key.shape[1])
        x = features(full).transpose(0, 1).flatten(1, 2)  # [H, T, F]
        known = ~cost[0, : x.shape[1]].isnan()
        seen.append(x[:, known])
        wanted.append((cost[:, : x.shape[1]][:, known] + _LEAST).log())
    x, y = torch.cat(seen, 1), torch.cat(wanted, 1)
    # The last feature is the constant.
    mean, spread = x.mean(1, keepdim=True), x.std(1, keepdim=True)
    # What hardly varies tells nothing, and its weight would be beyond half precision.
    spread = spread.masked_fill(spread <= FLAT * mean.abs().clamp(min=1), torch.inf)
    z = (x - mean) / spread
    z[..., -1] = 1
    gram = z.transpose(1, 2) @ z + RIDGE * z.shape[1] * torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
    solved = torch.linalg.solve(gram, z.transpose(1, 2) @ y[..., None])[..., 0]
    weights = solved / spread[:, 0]
    weights[:, -1] = solved[:, -1] - (solved[:, :-1] * mean[:, 0, :-1] / spread[:, 0, :-1]).sum(-1)
    most = torch.finfo(torch.float16).max
    return weights.clamp(-most, most).to(torch.float16).to(torch.float64)
