"""What every option of every KV head costs, in KL, from one pass over a window: a quadratic estimate.

The output that an option would give is compared with the exact one, and the difference is weighed by the gradients that
``capture`` drew. Everything else is left exact, so costs add up to first order; the search measures the sum for real.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leankv_kernels import HIGH, LOW, MID, PRUNED, RecordLayout
from leankv_kernels.layout import bin_centre, bin_width
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.reference.codec import centre_of, quantize, rotate
from leankv_kernels.reference.tiers import SINK_TOKENS
from leankv_sglang.calibrate.capture import Layer
from leankv_sglang.calibrate.options import Option
from leankv_sglang.compression.significance import FullPages
from leankv_sglang.config import LeanKVConfig

QUERY_BLOCK = 512


def layer_costs(
    seen: Layer, significance: Tensor, options: list[Option], config: LeanKVConfig, layout: RecordLayout, skip: int
) -> Tensor:
    """Estimated KL ``[H, options]`` of every head's options, summed over the window's predictions from ``skip`` on; in
    main memory.

    Args:
        seen: one layer over one window.
        significance: of the tokens of whole pages, ``[H, pages * P]``.
        options: what heads may choose.
        config: rotation and near pages.
        layout: of the records.
        skip: first tokens that do not count.
    """
    heads, tokens, _ = seen.k.shape
    whole = significance.shape[1]
    cost = torch.zeros(heads, len(options), dtype=torch.float64)
    high, low = layout.high, layout.low
    mid = layout.mid or low
    keys = _stored(seen.k, {high.key_bits, low.key_bits}, config.rotation, layout.page_size)
    values = _stored(seen.v, {high.value_bits, low.value_bits}, config.rotation, 0)
    for head in range(heads):
        tiers = torch.stack([option.tiers(significance[head]) for option in options])
        tiers[:, :SINK_TOKENS] = HIGH
        tiers = torch.nn.functional.pad(tiers, (0, tokens - whole), value=PRUNED)
        # One matrix of values for each precision of keys: [T, options, D + 1], a column of ones for the denominator.
        size = (tokens, len(options), layout.v_head_dim + 1)
        sides = {bits: torch.zeros(size, device=seen.k.device) for bits in keys}
        for tier, form in ((HIGH, high), (MID, mid), (LOW, low)):
            member = (tiers == tier).T[..., None]
            value = torch.nn.functional.pad(values[form.value_bits][head], (0, 1), value=1.0)
            sides[form.key_bits] += member * value[:, None]
        near = (keys[high.key_bits][head], values[high.value_bits][head])
        far = [(keys[bits][head], side.flatten(1)) for bits, side in sides.items()]
        cost[head] = _head_cost(seen, head, near, far, len(options), config.near_pages, layout.page_size, skip)
    return cost


def _head_cost(
    seen: Layer,
    head: int,
    near: tuple[Tensor, Tensor],
    far: list[tuple[Tensor, Tensor]],
    options: int,
    near_pages: int,
    page: int,
    skip: int,
) -> Tensor:
    group = seen.q.shape[0] // seen.k.shape[0]
    rows = slice(head * group, (head + 1) * group)
    tokens, dim = seen.v.shape[1:]
    position = torch.arange(tokens, device=seen.k.device)
    cost = torch.zeros(options, dtype=torch.float64, device=seen.k.device)
    for start in range(skip // page * page, tokens, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, tokens)
        q = seen.q[rows, start:stop]  # [g, B, D]
        t, own = position[start:stop, None], position[start:stop, None] // page
        first = max(start // page - near_pages, 0) * page
        here, last_far = position[None, first:stop], max((stop - 1) // page - near_pages, 0) * page
        inside = (here // page == own) & (here <= t)
        raw = seen.scores(q, seen.k[head, first:stop]).masked_fill(~inside, float("-inf"))
        close = (here // page < own) & (here // page >= own - near_pages)
        nears = seen.scores(q, near[0][first:stop]).masked_fill(~close, float("-inf"))
        # Any common offset will do; that of all exact scores keeps every weight in range.
        causal = seen.scores(q, seen.k[head, :stop]).masked_fill(position[None, :stop] > t, float("-inf"))
        top = causal.amax(-1, keepdim=True)
        weights = (raw - top).exp(), (nears - top).exp()
        values = seen.v[head, first:stop], near[1][first:stop]
        parts = [torch.cat([w @ v, w.sum(-1, keepdim=True)], -1) for w, v in zip(weights, values, strict=True)]
        both = parts[0] + parts[1]
        if seen.sinks is not None:
            both[..., dim:] += (seen.sinks[rows, None, None] - top).exp()
        total = both[:, :, None].expand(-1, -1, options, -1)
        if last_far:
            away = position[None, :last_far] // page < own - near_pages
            for key, side in far:
                w = (seen.scores(q, key[:last_far]) - top).masked_fill_(~away, float("-inf")).exp_()
                total = total + (w @ side[:last_far]).unflatten(-1, (options, dim + 1))
        moved = total[..., :dim] / total[..., dim:] - seen.out[rows, start:stop, None]
        slope = torch.einsum("sgtd,gtod->sto", seen.grads[:, rows, start:stop], moved)
        cost += 0.5 * slope.double().square().sum((0, 1)) / len(seen.grads)
    return cost


def full_pages(seen: Layer, page: int) -> FullPages:
    """What a strategy would see of the window's whole pages."""
    heads, tokens, _ = seen.k.shape
    group, whole = seen.q.shape[0] // heads, tokens // page * page
    q = seen.q[:, :whole].unflatten(1, (-1, page))
    k = seen.k[:, :whole].unflatten(1, (-1, page)).repeat_interleave(group, 0)
    future = torch.ones(page, page, dtype=torch.bool, device=q.device).triu_(1)
    weights = seen.scores(q, k).masked_fill_(future, float("-inf")).softmax(-1)
    columns = (weights.double() * COLUMN_SCORE_ONE).round().sum(2).to(torch.int32).transpose(0, 1)
    by_page = (x[:, :whole].unflatten(1, (-1, page)).permute(1, 2, 0, 3) for x in (seen.k, seen.v))
    return FullPages(columns, *by_page)


def _stored(x: Tensor, precisions: set[int], rotation: str, page: int) -> dict[int, Tensor]:
    """Rows ``[H, T, D]`` as a record gives them back, by bits of their codes; of keys, each whole page of ``page``
    tokens less its centre."""
    rotated = rotate(x, rotation)
    centre = torch.zeros_like(rotated)
    if page:
        whole = x.shape[1] // page * page
        by_page = x[:, :whole].unflatten(1, (-1, page))
        centres = centre_of(by_page, rotation).double()[:, :, None].expand(-1, -1, page, -1)
        centre[:, :whole] = centres.flatten(1, 2)
    codes, scale, zero = quantize(rotated - centre, (min(precisions), max(precisions)))
    stored = {}
    for bits in precisions:
        step, offset = bin_centre(bits)
        read = (codes // bin_width(bits) * step + offset) * scale.double()[..., None] + zero.double()[..., None]
        stored[bits] = rotate(read + centre, rotation).float()
    return stored
