"""Commit of full pages: score -> tier per (token, KV head) -> pack into blocks."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from leankv_kernels.layout import HIGH, LOW, MID, PRUNED
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.reference.codec import centre_of, rotate
from leankv_kernels.reference.record import encode
from leankv_kernels.store import RecordStore

SINK_TOKENS = 4
"""The first tokens of a sequence, which every head leans on; never below high."""
NEVER = 1e9
"""A threshold from here on stands for none: a head with three of them keeps nothing but sinks."""


def mean_attention(column_scores: Tensor, num_kv_heads: int) -> Tensor:
    """The paper's significance, observed and normalized inside the page.

    The mean attention probability a token receives from the page's queries at or after it, divided by what uniform
    attention would give it, and the largest of these over the query heads of the KV head (paper section 4.2).

    Args:
        column_scores: integers ``[n, Hq, P]``, summed over all P queries of the page (see ``attend_open``).

    Returns:
        float64 ``[n, H, P]``; 1 means "as much as every other token".
    """
    relative = column_scores / _uniform_scores(column_scores.shape[-1], column_scores.device)
    return relative.unflatten(1, (num_kv_heads, -1)).amax(2)


@cache
def _uniform_scores(page: int, device: torch.device) -> Tensor:
    """Column scores of uniform attention, float64 ``[P]``."""
    inverse = 1.0 / torch.arange(1, page + 1, dtype=torch.float64, device=device)
    return inverse.flip(0).cumsum(0).flip(0) * COLUMN_SCORE_ONE


def choose_tiers(
    significance: Tensor, alphas: Tensor, page_index: Tensor, keep_first: int = 0, least: int = LOW
) -> Tensor:
    """Tier of every token: high above the first threshold, else mid above the second, else low from the third on, else
    pruned; sinks are always high, and in the first pages nothing is less than ``least``, but for heads that prune all.

    A prompt's first page says what all that follows is about, and of a short context it is most; of a long one it
    weighs little. A head that keeps nothing else would see it for all of the context.

    Args:
        significance: float64 ``[n, H, P]``.
        alphas: float64 ``[3, H]``, or ``[n, 3, H]`` where pages differ.
        page_index: int64 ``[n]``, pages of its sequence before each page.
        keep_first: how many pages are first pages.
        least: ``LOW``, or ``MID`` where there is a middle tier.

    Returns:
        uint8 ``[n, H, P]``.
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


def commit_pages(
    store: RecordStore, layer: int, pages: Tensor, key: Tensor, value: Tensor, tiers: Tensor, rotation: str
) -> None:
    """Rotate, quantize and pack full pages and store their records; afterwards they are immutable.

    Args:
        store: where the records go.
        layer: index in the store.
        pages: int64 ``[n]``, logical ids that hold no record in this layer yet.
        key, value: raw, model dtype ``[n, P, H, D]``, keys after RoPE.
        tiers: uint8 ``[n, H, P]``.
        rotation: ``hadamard`` or ``none``.
    """
    by_head = [rotate(x, rotation).transpose(1, 2) for x in (key, value)]
    centre = centre_of(key.transpose(1, 2), rotation)
    records, nbytes = encode(by_head[0], by_head[1], tiers, store.layout, centre)
    store.write(layer, pages, records, nbytes)
