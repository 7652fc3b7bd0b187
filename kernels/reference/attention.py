"""Attention by the read rule, in parts that merge: the raw own page, and the near and far views of committed pages.

Everything is summed in float64. Products of model-dtype values and of codes are then exact or off by 2^-53 of the sum,
so the result, once rounded to the model dtype, does not depend on the batch, on the chunk split or on how a matrix
product orders its terms: this is what makes a cache hit equal a miss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leankv_kernels.plan import Plan
from leankv_kernels.raw import RawPages
from leankv_kernels.reference.codec import FP16_MAX, rotate
from leankv_kernels.reference.record import View, decode
from leankv_kernels.store import RecordStore

COLUMN_SCORE_ONE = 1 << 22
"""Fixed-point one of column scores: integers add up exactly in any order, so a score does not depend on the split."""


def _by_tile(x: Tensor, plan: Plan) -> Tensor:
    """``[T, ...]`` to zero-padded ``[U, max_queries, ...]``."""
    out = x.new_zeros(plan.num_tiles, plan.max_queries, *x.shape[1:])
    out[plan.token_tile, plan.token_rank] = x
    return out


def _softmax_state(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights relative to the largest, their sum (1 where empty) and the LSE, over the last dim; in place.

    A row of -inf gives zero weights and an LSE of -inf.
    """
    peak = scores.amax(-1, keepdim=True)
    weights = scores.sub_(peak.masked_fill(peak.isinf(), 0.0)).exp_()
    total = weights.sum(-1, keepdim=True)
    lse = torch.where(total > 0, peak + total.log(), peak).squeeze(-1)
    return weights, total.masked_fill(total == 0, 1.0), lse


def _cap_scores(scores: Tensor, cap: float) -> Tensor:
    """Scores drawn into (-cap, cap), in place; as they are where it is 0."""
    return scores.div_(cap).tanh_().mul_(cap) if cap else scores


def attend_open(q: Tensor, raw: RawPages, plan: Plan, scale: float, cap: float = 0.0) -> tuple[Tensor, Tensor]:
    """Causal attention of every tile's queries over the raw tokens of their own page.

    Adds to ``raw.scores`` the in-page softmax probability each key receives from the tile's queries, summed, in tiles
    of 1 / COLUMN_SCORE_ONE; a tile that begins a page starts from zero.

    Keys and values saturate at 65504, as committed ones do. A query that is not finite, or reads a key or value that is
    not, gets NaN, at the least where exact arithmetic has it, and adds no scores; nobody else does.

    Args:
        q: ``[T, Hq, D]``, any float dtype, not rotated.
        raw: own pages; positions behind a tile's last query are not read.
        plan: the forward's plan.
        scale: factor on q.k.
        cap: scores, scaled, become ``cap * tanh(score / cap)`` before the softmax; 0 for as they are.

    Returns:
        out float64 ``[T, Hq, Dv]`` and LSE float64 ``[T, Hq]``.
    """
    heads = raw.key.shape[2]
    # Stale bytes behind the last token may be anything, NaN included.
    stale = plan.unwritten[..., None, None]
    k, v = (x[raw.at].to(torch.float64).masked_fill(stale, 0.0).transpose(1, 2) for x in (raw.key, raw.value))
    unreadable = ~(k.isfinite().all(-1) & v.isfinite().all(-1))  # [U, H, P]
    k, v = (x.nan_to_num(0.0, 0.0, 0.0).clamp(-FP16_MAX, FP16_MAX) for x in (k, v))
    # [U, H, g * Q, D]
    rows = _by_tile(q.to(torch.float64) * scale, plan).unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
    scores = _cap_scores(rows @ k.transpose(2, 3), cap).unflatten(2, (-1, plan.max_queries))
    weights, total, lse = _softmax_state(scores.masked_fill_(~plan.causal[:, None, None], float("-inf")))
    none = (plan.causal[:, None] & unreadable[:, :, None]).any(-1)[:, :, None]  # [U, H, 1, Q]
    lse = lse.masked_fill(none, float("nan"))
    prob = weights.div_(total).masked_fill(none[..., None], float("nan"))
    out = (prob.flatten(2, 3) @ v).unflatten(2, (-1, plan.max_queries)).permute(0, 3, 1, 2, 4)
    columns = (prob * (COLUMN_SCORE_ONE * plan.asked[:, None, None, :, None])).nan_to_num_(0.0).round_().to(torch.int32)
    before = raw.scores[raw.at].masked_fill((plan.first == 0)[:, None, None], 0)
    raw.scores[raw.at] = before + columns.sum(3, dtype=torch.int32).flatten(1, 2)
    at = (plan.token_tile, plan.token_rank)
    return out.flatten(2, 3)[at], lse.permute(0, 3, 1, 2).flatten(2, 3)[at]


def attend_committed(
    q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attention over the pages before each query's own: the last ``plan.near_pages`` at the near view, the rest far.

    Args:
        q: ``[T, Hq, D]``, any float dtype, not rotated.
        store: holds the records of every page in ``plan.pages``.
        layer: index in the store.
        plan: the forward's plan.
        scale: factor on q.k.
        rotation: how keys and values were rotated before quantizing.
        cap: scores, scaled and with the centre's share, become ``cap * tanh(score / cap)``; 0 for as they are.

    Returns:
        out float64 ``[T, Hq, Dv]``, rotated back, and LSE float64 ``[T, Hq]``: zeros and -inf where nothing is read.
    """
    lay = store.layout
    out = torch.zeros(*q.shape[:2], lay.v_head_dim, dtype=torch.float64, device=q.device)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float64, device=q.device)
    rotated = (rotate(q, rotation) * scale).unflatten(1, (lay.num_kv_heads, -1))
    by_request: dict[int, list[int]] = {}
    for tile, request in enumerate(plan.request):
        if plan.page_index[tile]:
            by_request.setdefault(request, []).append(tile)
    for request, tiles in by_request.items():
        records = store.gather(layer, plan.pages[plan.page_indptr[request] : plan.page_indptr[request + 1]])
        last = len(records)
        first_near = max(plan.page_index[tiles[0]] - plan.near_pages, 0) if lay.near else last
        last_far = max(last - plan.near_pages, 0) if lay.near else last
        # A page between the two is read near by one tile and far by a later one.
        both = torch.cat([records[:last_far], records[first_near:]]) if first_near < last_far else records
        is_near = torch.arange(len(both), device=q.device) >= last_far
        view = _keys_and_values(decode(both, lay, is_near))
        for tile in tiles:
            tokens = slice(plan.q_indptr[tile], plan.q_indptr[tile + 1])
            own = plan.page_index[tile]
            split = max(own - plan.near_pages, 0) if lay.near else own
            shift = len(both) - last
            cuts = [(0, split), (split + shift, own + shift)] if shift else [(0, own)]
            parts = [_slice(view, start, end) for start, end in cuts]
            tile_out, tile_lse = _attend_views(rotated[tokens], [p for p in parts if len(p.valid)], cap)
            out[tokens] = rotate(tile_out, rotation)
            lse[tokens] = tile_lse
    return out, lse


def _keys_and_values(view: View) -> View:
    """The view with its codes in float64, where products and sums of them are exact."""
    return view._replace(key=view.key.to(torch.float64), value=view.value.to(torch.float64))


def _slice(view: View, start: int, end: int) -> View:
    return View(*(x[start:end] for x in view))


def _attend_views(q: Tensor, views: list[View], cap: float) -> tuple[Tensor, Tensor]:
    """Attention of Q queries over all tokens of some pages; scales and zeros are folded out of the products.

    Args:
        q: rotated and scaled, float64 ``[Q, H, g, D]``.
        views: pages, codes in float64.
        cap: of scores, or 0.

    Returns:
        out ``[Q, Hq, Dv]``, still rotated, and LSE ``[Q, Hq]``.
    """
    queries, heads, group, dim = q.shape
    rows = q.permute(1, 0, 2, 3).reshape(heads, queries * group, dim)
    row_sum = rows.sum(-1)[..., None]
    scores = []
    for view in views:
        dots = rows @ view.key.transpose(2, 3)  # [n, H, Q * g, P]
        dots.mul_(view.key_scale[:, :, None]).add_(row_sum * view.key_zero[:, :, None])
        dots.add_(rows @ view.key_centre[..., None])
        scores.append(_cap_scores(dots, cap).masked_fill_(~view.valid[:, :, None], float("-inf")))
    page = scores[0].shape[-1]
    flat = torch.cat(scores).permute(1, 2, 0, 3).flatten(2)
    weights, total, lse = _softmax_state(flat)
    parts = weights.unflatten(2, (-1, page)).permute(2, 0, 1, 3).split([len(v.valid) for v in views])
    out = rows.new_zeros(*rows.shape[:2], views[0].value.shape[-1])
    for view, weight in zip(views, parts, strict=True):
        out += ((weight * view.value_scale[:, :, None]) @ view.value).sum(0)
        out += (weight * view.value_zero[:, :, None]).sum((0, 3))[..., None]
    out = (out / total).unflatten(1, (queries, group)).permute(1, 0, 2, 3).flatten(1, 2)
    return out, lse.unflatten(1, (queries, group)).permute(1, 0, 2).flatten(1, 2)


def merge_states(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    dtype: torch.dtype | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Merge two partial attentions over disjoint keys.

    Args:
        out_a, out_b: ``[T, Hq, Dv]``, zeros where nothing was read.
        lse_a, lse_b: ``[T, Hq]``, -inf where nothing was read.
        dtype: what the output is rounded to; None for as it is.
        sinks: ``[Hq]``, any float dtype: a logit per query head that takes part in the denominator alone. It is in the
            LSE as well, so it is given in one merge only.

    Returns:
        out ``[T, Hq, Dv]``, zeros where both are empty, and LSE ``[T, Hq]``, the sink's or -inf there.
    """
    states = [lse_a, lse_b] if sinks is None else [lse_a, lse_b, sinks.to(lse_a).expand_as(lse_a)]
    peak = torch.stack(states).amax(0)
    safe = torch.where(peak.isinf(), torch.zeros_like(peak), peak)
    weight_a, weight_b, *sink = [(lse - safe).exp() for lse in states]
    total = sum(sink, weight_a + weight_b)
    norm = torch.where(total > 0, total, torch.ones_like(total))
    out = out_a * (weight_a / norm)[..., None] + out_b * (weight_b / norm)[..., None]
    return out if dtype is None else out.to(dtype), torch.where(total > 0, safe + total.log(), peak)
