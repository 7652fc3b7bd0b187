"""Attention by the read rule, in parts that merge: the raw own page, and the near and far views of committed pages.

Everything is summed in float64. Products of model-dtype values and of codes are then exact or off by 2^-53 of the sum,
so the result, once rounded to the model dtype, does not depend on the batch, on the chunk split or on how a matrix
product orders its terms: this is what makes a cache hit equal a miss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leankv_kernels.plan import Plan
from leankv_kernels.reference.codec import rotate
from leankv_kernels.reference.record import decode
from leankv_kernels.store import RecordStore

COLUMN_SCORE_ONE = 1 << 22
"""Fixed-point one of column scores: integers add up exactly in any order, so a score does not depend on the split."""


def _by_unit(x: Tensor, plan: Plan) -> Tensor:
    """``[T, ...]`` to zero-padded ``[U, max_queries, ...]``."""
    out = x.new_zeros(plan.num_units, plan.max_queries, *x.shape[1:])
    out[plan.token_unit, plan.token_rank] = x
    return out


def _softmax_state(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Normalized probabilities and LSE over the last dim; a row of -inf gives zeros and -inf."""
    peak = scores.amax(-1, keepdim=True)
    weights = (scores - torch.where(peak.isinf(), torch.zeros_like(peak), peak)).exp()
    total = weights.sum(-1, keepdim=True)
    lse = torch.where(total > 0, peak + total.log(), peak)
    return weights / torch.where(total > 0, total, torch.ones_like(total)), lse.squeeze(-1)


def attend_open(q: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Causal attention of every unit's queries over the raw tokens of their own page.

    Args:
        q: ``[T, Hq, D]``, any float dtype, not rotated.
        key, value: ``[U, P, H, D]``, the units' own pages; positions behind a unit's last query are not read.
        plan: the forward's plan.
        scale: factor on q.k.

    Returns:
        out float64 ``[T, Hq, D]``; LSE float64 ``[T, Hq]``; column scores int64 ``[U, Hq, P]``: the in-page softmax
        probability each key received from the unit's queries, summed, in units of 1 / COLUMN_SCORE_ONE.
    """
    page, heads = key.shape[1], key.shape[2]
    group = q.shape[1] // heads
    qu = _by_unit(q.to(torch.float64), plan).unflatten(2, (heads, group))
    position = torch.arange(page, device=q.device)
    rank = torch.arange(plan.max_queries, device=q.device)
    causal = position <= (plan.first[:, None] + rank)[..., None]  # [U, Q, P]
    asked = rank < plan.length[:, None]
    written = position < (plan.first + plan.length)[:, None]
    # Stale bytes behind the last token may be anything, NaN included.
    k = key.to(torch.float64).masked_fill(~written[..., None, None], 0.0)
    v = value.to(torch.float64).masked_fill(~written[..., None, None], 0.0)
    scores = torch.einsum("uqhgd,uphd->uhgqp", qu, k) * scale
    scores = scores.masked_fill(~causal[:, None, None], float("-inf"))
    prob, lse = _softmax_state(scores)
    out = torch.einsum("uhgqp,uphd->uqhgd", prob, v)
    columns = (prob * COLUMN_SCORE_ONE).round().to(torch.int64) * asked[:, None, None, :, None]
    at = (plan.token_unit, plan.token_rank)
    return (
        out.flatten(2, 3)[at],
        lse.permute(0, 3, 1, 2).flatten(2, 3)[at],
        columns.sum(3).flatten(1, 2),
    )


def attend_committed(
    q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str
) -> tuple[Tensor, Tensor]:
    """Attention over the pages before each query's own: the last ``plan.window`` at the near view, the rest far.

    Args:
        q: ``[T, Hq, D]``, any float dtype, not rotated.
        store: holds the records of every page in ``plan.pages``.
        layer: index in the store.
        plan: the forward's plan.
        scale: factor on q.k.
        rotation: how keys and values were rotated before quantizing.

    Returns:
        out float64 ``[T, Hq, D]``, rotated back, and LSE float64 ``[T, Hq]``: zeros and -inf where nothing is read.
    """
    lay = store.layout
    heads, page = lay.num_kv_heads, lay.page_size
    group = q.shape[1] // heads
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    lse = torch.full(q.shape[:2], float("-inf"), dtype=torch.float64, device=q.device)
    by_request: dict[int, list[int]] = {}
    for unit, request in enumerate(plan.request):
        if plan.page_index[unit]:
            by_request.setdefault(request, []).append(unit)
    for request, units in by_request.items():
        records = store.gather(layer, plan.pages[plan.page_indptr[request] : plan.page_indptr[request + 1]])
        far = decode(records, lay, near=False)
        far_k, far_v = (x.transpose(0, 1).flatten(1, 2) for x in (far.keys(), far.values()))
        far_valid = far.valid.transpose(0, 1).flatten(1, 2)
        if lay.near:
            first_near = max(plan.page_index[units[0]] - plan.window, 0)
            near = decode(records[first_near:], lay, near=True)
            near_k, near_v = (x.transpose(0, 1).flatten(1, 2) for x in (near.keys(), near.values()))
        for unit in units:
            tokens = slice(plan.q_indptr[unit], plan.q_indptr[unit + 1])
            end = plan.page_index[unit] * page
            split = max(plan.page_index[unit] - plan.window, 0) * page if lay.near else end
            k, v, valid = far_k[:, :split], far_v[:, :split], far_valid[:, :split]
            if split < end:
                at = slice(split - first_near * page, end - first_near * page)
                k, v = torch.cat([k, near_k[:, at]], 1), torch.cat([v, near_v[:, at]], 1)
                valid = torch.cat([valid, valid.new_ones(heads, end - split)], 1)
            qr = rotate(q[tokens], rotation).unflatten(1, (heads, group)).permute(1, 2, 0, 3).flatten(1, 2)
            scores = (qr @ k.transpose(1, 2) * scale).masked_fill(~valid[:, None], float("-inf"))
            prob, unit_lse = _softmax_state(scores)
            unit_out = (prob @ v).unflatten(1, (group, -1)).permute(2, 0, 1, 3).flatten(1, 2)
            out[tokens] = rotate(unit_out, rotation)
            lse[tokens] = unit_lse.unflatten(1, (group, -1)).permute(2, 0, 1).flatten(1, 2)
    return out, lse


def merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge two partial attentions over disjoint keys: out ``[T, Hq, D]``, LSE ``[T, Hq]`` (-inf where empty)."""
    peak = torch.maximum(lse_a, lse_b)
    safe = torch.where(peak.isinf(), torch.zeros_like(peak), peak)
    weight_a, weight_b = (lse_a - safe).exp(), (lse_b - safe).exp()
    total = weight_a + weight_b
    norm = torch.where(total > 0, total, torch.ones_like(total))
    out = out_a * (weight_a / norm)[..., None] + out_b * (weight_b / norm)[..., None]
    return out, torch.where(total > 0, safe + total.log(), peak)
