"""Attention over the last keys of each query, raw and anywhere in a pool: layers with a sliding window."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels.reference.codec import FP16_MAX


class WindowRequest(NamedTuple):
    """One request's share of a forward."""

    queries: slice
    """Of the forward's tokens; there is at least one."""
    slots: slice
    """Of the forward's slots: keys of positions ``kv_start`` up to the last query's."""
    first_query: int
    """Absolute position of its first query."""
    kv_start: int


def window_requests(
    tokens: int,
    slots: int,
    q_indptr: Sequence[int] | Tensor,
    kv_indptr: Sequence[int] | Tensor,
    kv_start: Sequence[int] | Tensor,
    window: int,
) -> list[WindowRequest]:
    """The requests of :func:`attend_window` that have queries.

    Raises:
        ValueError: where the lists do not fit each other, tokens and slots, or where a query sees, or is at, a position
            that no slot was given for.
    """
    queries, keys, starts = (x.tolist() if isinstance(x, Tensor) else list(x) for x in (q_indptr, kv_indptr, kv_start))
    if not len(queries) == len(keys) == len(starts) + 1:
        raise ValueError(
            f"a window's q_indptr and kv_indptr have one entry more than kv_start, not {len(queries)}, {len(keys)} and "
            f"{len(starts)} entries"
        )
    for indptr, end, what in ((queries, tokens, "q_indptr"), (keys, slots, "kv_indptr")):
        if indptr[0] or indptr[-1] != end or any(a > b for a, b in pairwise(indptr)):
            raise ValueError(f"a window's {what} must rise from 0 to {end}: {indptr}")
    found = []
    for r, start in enumerate(starts):
        of_queries, of_keys = slice(queries[r], queries[r + 1]), slice(keys[r], keys[r + 1])
        count = of_queries.stop - of_queries.start
        if not count:
            continue
        first = start + of_keys.stop - of_keys.start - count
        least = max(first - window, 0) if window >= 0 else 0
        if start < 0 or min(first, least) < start:
            raise ValueError(
                f"request {r} sees keys from position {min(first, least)} on, and slots begin at {start}: hand over "
                "those of every position that its queries see"
            )
        found.append(WindowRequest(of_queries, of_keys, first, start))
    return found


def attend_window(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    slots: Tensor,
    q_indptr: Sequence[int] | Tensor,
    kv_indptr: Sequence[int] | Tensor,
    kv_start: Sequence[int] | Tensor,
    window: int,
    scale: float,
    cap: float = 0.0,
    sinks: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Attention of every query over its own key and the ``window`` keys before it.

    Keys and values saturate at 65504. A query that is not finite, or sees a key or value that is not, gets NaN; nobody
    else does. Summed in float64, so that nothing but positions and what a query sees decides its bits.

    Args:
        q: ``[T, Hq, Dk]``, any float dtype, the last positions of R requests.
        key: a pool ``[S, H, Dk]``, any float dtype.
        value: a pool ``[S, H, Dv]``.
        slots: int64, rows of the pools, one request's after the other: those of positions ``kv_start`` up to that of
            its last query.
        q_indptr: R + 1 bounds of the requests' queries; a request may have none.
        kv_indptr: R + 1 bounds of the requests' slots.
        kv_start: R absolute positions, of each request's first slot.
        window: how many keys before its own a query sees; below 0 for all.
        scale: factor on q.k.
        cap: scores, scaled, become ``cap * tanh(score / cap)`` before the softmax; 0 for as they are.
        sinks: ``[Hq]``, a logit per query head that takes part in the denominator alone.
        dtype: of the output; None for that of q.

    Returns:
        ``[T, Hq, Dv]``.

    Raises:
        ValueError: see :func:`window_requests`.
    """
    heads, dtype = key.shape[1], dtype or q.dtype
    out = q.new_zeros(*q.shape[:2], value.shape[2], dtype=dtype)
    for r in window_requests(len(q), len(slots), q_indptr, kv_indptr, kv_start, window):
        k, v = (x[slots[r.slots]].to(torch.float64).transpose(0, 1) for x in (key, value))  # [H, n, D]
        unreadable = ~(k.isfinite().all(-1) & v.isfinite().all(-1))
        k, v = (x.nan_to_num(0.0, 0.0, 0.0).clamp(-FP16_MAX, FP16_MAX) for x in (k, v))
        rows = (q[r.queries].to(torch.float64) * scale).unflatten(1, (heads, -1)).permute(1, 2, 0, 3)  # [H, g, Q, Dk]
        scores = rows @ k[:, None].transpose(2, 3)
        if cap:
            scores = cap * (scores / cap).tanh()
        ahead = torch.arange(rows.shape[2], device=q.device)[:, None] + r.first_query
        ahead = ahead - r.kv_start - torch.arange(k.shape[1], device=q.device)  # [Q, n], of a query over a key
        seen = (ahead >= 0) & (ahead <= window) if window >= 0 else ahead >= 0
        scores = scores.masked_fill(~seen, float("-inf"))
        lse = scores.logsumexp(-1, keepdim=True)
        if sinks is not None:
            lse = torch.logaddexp(lse, sinks.to(lse).view(heads, -1, 1, 1))
        part = (scores - lse).exp() @ v[:, None]
        none = (seen & unreadable[:, None]).any(-1)[:, None] | ~rows.isfinite().all(-1)  # [H, g, Q]
        part = part.masked_fill(none[..., None], float("nan"))
        out[r.queries] = part.permute(2, 0, 1, 3).flatten(1, 2).to(dtype)
    return out
