"""The exact cache for packed sequences: 16-bit keys and values, softmax in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leankv_sglang.models.shape import ModelShape
from leankv_sglang.offline.caches import Cache, State

QUERY_BLOCK, GPU_QUERY_BLOCK = 128, 1024
"""Queries of exact attention at a time: on a CPU scores of a block stay in cache, worth a third of the time."""
GROW = 256
"""Tokens of which a row's room is a multiple."""


@dataclass(eq=False)
class RawState(State):
    """A row of the cache's memory."""

    row: int = 0


class RawCache(Cache[RawState]):
    """The uncompressed cache, rows of tokens that grow to the largest sequence.

    Args:
        shape: the model's.
        rows: sequences at a time.
        dtype: of keys and values.
        device: where they live.
    """

    def __init__(
        self, shape: ModelShape, rows: int, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> None:
        self.shape, self.device = shape, device
        self.kv = torch.empty(shape.layers, 2, rows, shape.kv_heads, 0, shape.head_dim, dtype=dtype, device=device)
        self.rows = list(range(rows))
        # One call for all rows that decode: on a GPU a call costs more than reading to the longest row's end.
        self.together = torch.device(device).type != "cpu"
        self._lengths: list[int] = []
        self._row_ids = self._ends = torch.empty(0)

    def new(self, capacity: int) -> RawState:
        """See :meth:`Cache.new`."""
        if capacity > self.kv.shape[4]:
            held = self.kv.shape[4]
            grown = self.kv.new_empty(*self.kv.shape[:4], -(-capacity // GROW) * GROW, self.kv.shape[5])
            grown[..., :held, :] = self.kv
            self.kv = grown
        return RawState(0, self.rows.pop())

    def fork(self, state: RawState, capacity: int) -> RawState:
        """See :meth:`Cache.fork`; copies."""
        other = self.new(capacity)
        other.length = state.length
        self.kv[:, :, other.row, :, : state.length] = self.kv[:, :, state.row, :, : state.length]
        return other

    def free(self, state: RawState) -> None:
        """See :meth:`Cache.free`."""
        self.rows.append(state.row)

    def begin(self, batch: Sequence[tuple[RawState, int]]) -> None:
        """See :meth:`Cache.begin`."""
        super().begin(batch)
        self._lengths = [state.length + count for state, count in batch]
        if self.together:
            self._row_ids = torch.tensor([state.row for state, _ in batch], device=self.device)
            self._ends = torch.tensor(self._lengths, device=self.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See :meth:`Cache.attend`."""
        if self.together and self.tokens == len(self.batch):
            keys, values = self.kv[layer]
            keys[self._row_ids, :, self._ends - 1], values[self._row_ids, :, self._ends - 1] = k, v
            longest = max(self._lengths)
            keys, values = (x[:, :, :longest].index_select(0, self._row_ids) for x in (keys, values))
            return exact_decode(q, keys, values, self._ends, scale)
        outs, first = [], 0
        for (state, count), last in zip(self.batch, self._lengths, strict=True):
            span = slice(first, first + count)
            keys, values = self.kv[layer, :, state.row]
            keys[:, state.length : last] = k[span].transpose(0, 1)
            values[:, state.length : last] = v[span].transpose(0, 1)
            outs.append(exact(q[span], keys[:, :last], values[:, :last], scale))
            first += count
        return torch.cat(outs)

    def context_bytes(self, state: RawState) -> int:
        """See :meth:`Cache.context_bytes`."""
        return state.length * self.shape.token_bytes


def exact_decode(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Attention of one query ``[n, Hq, D]`` each over the first ``lengths [n]`` of keys and values ``[n, H, T, D]``."""
    rows = q.unflatten(1, (k.shape[1], -1))
    seen = torch.arange(k.shape[2], device=k.device) < lengths[:, None]
    # What lies behind a row's end was never written, and may be infinite.
    values = v.masked_fill(~seen[:, None, :, None], 0.0)
    scores = ((rows.float() * scale) @ k.float().transpose(2, 3)).masked_fill(~seen[:, None, None], float("-inf"))
    return (scores.softmax(-1) @ values.float()).flatten(1, 2).to(q.dtype)


def exact(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of the last ``[n, Hq, D]`` queries of ``[H, T, D]`` keys."""
    count, (heads, total, dim) = len(q), k.shape
    rows = q.unflatten(1, (heads, -1)).permute(1, 2, 0, 3)  # [H, g, n, D]
    if count == 1:
        # The query heads of a KV head as so many queries: nothing is repeated, nothing masked.
        out = torch.nn.functional.scaled_dot_product_attention(rows[None, :, :, 0], k[None], v[None], scale=scale)
        return out[0].reshape(1, -1, dim)
    keys, values = k.float().transpose(1, 2), v.float()
    out = torch.empty(heads, rows.shape[1], count, dim, dtype=q.dtype, device=q.device)
    block = QUERY_BLOCK if q.device.type == "cpu" else GPU_QUERY_BLOCK
    for start in range(0, count, block):
        stop = min(start + block, count)
        seen = total - count + stop
        scores = (rows[:, :, start:stop].float() * scale).flatten(1, 2) @ keys[:, :, :seen]
        scores = scores.view(heads, -1, stop - start, seen)
        future = torch.ones(stop - start, stop - start, dtype=torch.bool, device=q.device).triu_(1)
        scores[..., seen - (stop - start) :].masked_fill_(future, float("-inf"))
        weights = scores.softmax(-1).flatten(1, 2)
        out[:, :, start:stop] = (weights @ values[:, :seen]).view(heads, -1, stop - start, dim)
    return out.permute(2, 0, 1, 3).reshape(count, -1, dim)
