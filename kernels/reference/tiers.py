"""From what was observed of a page to the tier of each of its tokens: scores, thresholds, what is always kept."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from leankv_kernels.layout import HIGH, LOW, MID, PRUNED
from leankv_kernels.raw import FullPages, RawPages
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.tier_rule import TierRule

SINK_TOKENS = 4
"""The first tokens of a sequence, which every head leans on; never below high."""
NEVER = 1e9
"""A threshold from here on stands for none: a head with three of them keeps nothing but sinks."""


def mean_attention(column_scores: Tensor, num_kv_heads: int) -> Tensor:
    """The paper's significance, observed and normalized inside the page.

    The mean attention probability a token receives from the page's queries at or after it, divided by what uniform
    attention would give it, and the largest of these over the query heads of the KV head (paper section 4.2).

    Args:
        column_scores: integers ``[..., n, Hq, P]``, summed over all P queries of the page (see ``attend_open``).

    Returns:
        float64 ``[..., n, H, P]``; 1 means "as much as every other token".
    """
    relative = column_scores / uniform_scores(column_scores.shape[-1], column_scores.device)
    return relative.unflatten(-2, (num_kv_heads, -1)).amax(-2)


@cache
def uniform_scores(page: int, device: torch.device) -> Tensor:
    """Column scores of uniform attention, float64 ``[P]``; the same bits on every device."""
    inverse = 1.0 / torch.arange(1, page + 1, dtype=torch.float64)
    return (inverse.flip(0).cumsum(0).flip(0) * COLUMN_SCORE_ONE).to(device)


def choose_tiers(
    significance: Tensor, alphas: Tensor, page_index: Tensor, keep_first: int = 0, least: int = LOW
) -> Tensor:
    """Tier of every token: high above the first threshold, else mid above the second, else low from the third on, else
    pruned; sinks are always high, and in the first pages nothing is less than ``least``, but for heads that prune all.

    A prompt's first page says what all that follows is about, and of a short context it is most; of a long one it
    weighs little. A head that keeps nothing else would see it for all of the context.

    Args:
        significance: float64 ``[..., n, H, P]``.
        alphas: float64 ``[3, H]``, or ``[..., n, 3, H]`` where pages or layers differ.
        page_index: int64 ``[n]``, pages of its sequence before each page.
        keep_first: how many pages are first pages.
        least: ``LOW``, or ``MID`` where there is a middle tier.

    Returns:
        uint8 ``[..., n, H, P]``.
    """
    high, mid, low = alphas[..., None].unbind(-3)
    tiers = torch.full_like(significance, PRUNED, dtype=torch.uint8)
    tiers.masked_fill_(significance >= low, LOW).masked_fill_(significance > mid, MID)
    tiers.masked_fill_(significance > high, HIGH)
    if keep_first:
        keeps = (alphas < NEVER).any(-2).unsqueeze(-1)
        tiers.masked_fill_((page_index < keep_first)[:, None, None] & keeps & (tiers <= LOW), least)
    tiers[..., :SINK_TOKENS].masked_fill_((page_index == 0)[:, None, None], HIGH)
    return tiers


FEATURE_STEPS, WEIGHT_STEPS = 4096.0, 65536.0
"""Features and weights of a predictor are whole numbers of one step in so many."""
LEAST_ATTENTION, LEAST_ENERGY = 1e-4, 1e-8
LARGEST = 25.0
"""Logarithm of the largest significance that is predicted."""


def num_features(head_dim: int, v_head_dim: int = 0) -> int:
    """Features of a token: value, energies of pairs of key channels, attention, two norms, one. ``v_head_dim`` is that
    of keys unless it is given.
    """
    return (v_head_dim or head_dim) + head_dim // 2 + 4


def features(pages: FullPages) -> Tensor:
    """What a predictor looks at, float64 ``[..., n, H, P, F]``.

    RoPE turns channels i and i + D/2 of a key together, so the energy of the pair does not depend on the position.
    """
    key, value = (x.to(torch.float64).transpose(-3, -2) for x in (pages.key, pages.value))
    first, second = key.square().chunk(2, dim=-1)
    attention = mean_attention(pages.column_scores, pages.num_kv_heads)[..., None]
    norms = [x.square().sum(-1, keepdim=True).clamp(min=LEAST_ENERGY).log() for x in (value, key)]
    energies = (first + second).clamp(min=LEAST_ENERGY).log()
    return torch.cat(
        [value, energies, attention.clamp(min=LEAST_ATTENTION).log(), *norms, torch.ones_like(attention)], dim=-1
    )


def predicted_cost(weights: Tensor, pages: FullPages) -> Tensor:
    """The exponential of a weighted sum of :func:`features`: the KL by which a later query would miss the token.

    Features and weights are rounded to steps and summed as integers, so the order of the sum does not matter.

    Args:
        weights: int64 ``[..., H, F]``, in steps, leading dimensions as of ``pages`` before their n.
        pages: what was observed.

    Returns:
        float64 ``[..., n, H, P]``.
    """
    seen = (features(pages) * FEATURE_STEPS).round().to(torch.int64)
    total = (seen * weights[..., None, :, None, :]).sum(-1)
    return (total.to(torch.float64) / (FEATURE_STEPS * WEIGHT_STEPS)).clamp(max=LARGEST).exp()


def significance_of(score: str, weights: Tensor | None, pages: FullPages) -> Tensor:
    """How significant every token of full pages is to its KV head, float64 ``[..., n, H, P]``.

    Args:
        score: ``attention``, see :func:`mean_attention`; ``predictor``, see :func:`predicted_cost`; ``none``: nothing.
        weights: of ``predictor``.
        pages: what was observed.

    Raises:
        ValueError: for another score.
    """
    if score == "attention":
        return mean_attention(pages.column_scores, pages.num_kv_heads)
    if score == "predictor" and weights is not None:
        return predicted_cost(weights, pages)
    if score == "none":
        return torch.zeros_like(pages.key[..., 0], dtype=torch.float64).transpose(-1, -2)
    raise ValueError(f"there is no score {score!r}, or it lacks weights")


def tier_pages(raw: RawPages, layer: int, rule: TierRule, alphas: Tensor, page_index: Tensor) -> Tensor:
    """Tiers of the tokens of full pages.

    Args:
        raw: the n pages, of one layer or of several.
        layer: index of the first.
        rule: what to do.
        alphas: float64 ``[L, n, 3, H]``, thresholds in these layers; ``[L, 1, 3, H]`` where all pages have the same.
        page_index: int64 ``[n]``, pages of its sequence before each page.

    Returns:
        uint8 ``[L, n, H, P]``.
    """
    pages = raw.full_pages()
    weights = None if rule.weights is None else rule.weights[layer : layer + len(pages.key)]
    significance = significance_of(rule.score, weights, pages)
    return choose_tiers(significance, alphas, page_index, rule.keep_first, rule.least)
