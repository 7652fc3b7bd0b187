"""Raw keys and values of packed sequences, and exact attention over them: softmax in float32."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

QUERY_BLOCK, GPU_QUERY_BLOCK = 128, 1024
"""Queries of exact attention at a time: on a CPU scores of a block stay in cache, worth a third of the time."""
GROW = 256
"""Tokens of which a row's room is a multiple."""


class Rule(NamedTuple):
    """How a layer attends."""

    scale: float
    cap: float = 0.0
    """Scores s are ``cap * tanh(s / cap)``; 0 for none."""
    sinks: Tensor | None = None
    """A score of each query head ``[Hq]`` that belongs to no token."""
    window: int | None = None
    """Tokens that a query sees, itself included; None for all."""

    def capped(self, scores: Tensor) -> Tensor:
        """Scores, once scaled, under the cap."""
        return scores if not self.cap else (scores / self.cap).tanh() * self.cap

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax of scores ``[..., Hq, n, T]``, sinks in the denominator."""
        if self.sinks is None:
            return scores.softmax(-1)
        sink = self.sinks.to(scores.dtype)[:, None, None].expand(*scores.shape[:-1], 1)
        return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


class RawRows:
    """Rows of raw tokens, a layer's memory made when it is first written to; rows grow to the largest sequence.

    Args:
        rows: sequences at a time.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(self, rows: int, dtype: torch.dtype, device: torch.device | str) -> None:
        self._rows, self._dtype, self._device = rows, dtype, device
        self._room = 0
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        """Keys ``[rows, H, room, D]`` and values by layer."""

    def reserve(self, tokens: int) -> None:
        """Have room for sequences of so many tokens."""
        if tokens > self._room:
            self._room = -(-tokens // GROW) * GROW

    def of(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's rows, for tokens like ``k [T, H, D]`` and ``v [T, H, Dv]``."""
        held = self.layers.get(layer)
        if held is None or held[0].shape[2] < self._room:
            shapes = ((self._rows, x.shape[1], self._room, x.shape[2]) for x in (k, v))
            with torch.inference_mode(False):  # rows are written outside of it too
                grown = [torch.empty(shape, dtype=self._dtype, device=self._device) for shape in shapes]
            if held is not None:
                for old, new in zip(held, grown, strict=True):
                    new[:, :, : old.shape[2]] = old
            self.layers[layer] = grown[0], grown[1]
        return self.layers[layer]

    def copy(self, source: int, target: int, tokens: int) -> None:
        """Give one row the first tokens of another."""
        for held in self.layers.values():
            for x in held:
                x[target, :, :tokens] = x[source, :, :tokens]


def exact_decode(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, rule: Rule) -> Tensor:
    """Attention of one query ``[n, Hq, D]`` each over the first ``lengths [n]`` of keys and values ``[n, H, T, D]``."""
    rows = q.unflatten(1, (k.shape[1], -1))
    position = torch.arange(k.shape[2], device=k.device)
    seen = position < lengths[:, None]
    if rule.window is not None:
        seen &= position >= lengths[:, None] - rule.window
    # What lies behind a row's end was never written, and may be infinite.
    values = v.masked_fill(~seen[:, None, :, None], 0.0)
    scores = rule.capped((rows.float() * rule.scale) @ k.float().transpose(2, 3))
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    weights = rule.weights(scores.flatten(1, 2)[:, :, None]).reshape(scores.shape)
    return (weights @ values.float()).flatten(1, 2).to(q.dtype)


def exact(q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
    """Attention of the last ``[n, Hq, D]`` queries of keys and values ``[H, T, D]``."""
    count, (heads, total, _) = len(q), k.shape
    rows = q.unflatten(1, (heads, -1)).permute(1, 2, 0, 3)  # [H, g, n, D]
    if count == 1 and not rule.cap and rule.sinks is None:
        # The query heads of a KV head as so many queries: nothing is repeated, nothing masked.
        first = 0 if rule.window is None else max(total - rule.window, 0)
        keys, values = (x[None, :, first:].to(q.dtype) for x in (k, v))
        out = torch.nn.functional.scaled_dot_product_attention(rows[None, :, :, 0], keys, values, scale=rule.scale)
        return out[0].reshape(1, -1, v.shape[2])
    keys, values = k.float().transpose(1, 2), v.float()
    out = torch.empty(heads, rows.shape[1], count, v.shape[2], dtype=q.dtype, device=q.device)
    block = QUERY_BLOCK if q.device.type == "cpu" else GPU_QUERY_BLOCK
    for start in range(0, count, block):
        stop = min(start + block, count)
        before = total - count
        first = 0 if rule.window is None else max(before + start + 1 - rule.window, 0)
        span = slice(first, before + stop)
        scores = rule.capped((rows[:, :, start:stop].float() * rule.scale).flatten(1, 2) @ keys[:, :, span])
        scores = scores.view(heads, -1, stop - start, span.stop - first)
        own = stop - start
        future = torch.ones(own, own, dtype=torch.bool, device=q.device).triu_(1)
        scores[..., -own:].masked_fill_(future, float("-inf"))
        if rule.window is not None:
            at, here = (torch.arange(a, span.stop, device=q.device) for a in (before + start, first))
            scores.masked_fill_(here <= at[:, None] - rule.window, float("-inf"))
        weights = rule.weights(scores.flatten(0, 1)).reshape(scores.shape)
        out[:, :, start:stop] = (weights.flatten(1, 2) @ values[:, span]).view(heads, -1, stop - start, v.shape[2])
    return out.permute(2, 0, 1, 3).reshape(count, -1, v.shape[2])
