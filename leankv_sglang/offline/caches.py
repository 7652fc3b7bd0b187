"""KV state of packed sequences: exact over 16-bit keys and values, or compressed by our codec and read rule.

Both have one interface, so that everything around attention is the same. A forward is ``begin``, one ``attend`` per
layer, ``end``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from leankv_kernels import Plan, RawPages, RecordLayout, RecordStore, build_plan, get_ops
from leankv_kernels.layout import LEVEL_FAR
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.model_shape import ModelShape
from leankv_sglang.read_rule import Compressor
from leankv_sglang.significance import Significance
from leankv_sglang.significance.build import build_significance
from leankv_sglang.sizing import PAGE_TABLE_ENTRY, make_layout, open_page_bytes
from leankv_sglang.thresholds import threshold_table

QUERY_BLOCK = 128
"""Queries of exact attention at a time: scores of a block stay in cache, which is worth a third of the time."""


@dataclass(eq=False)
class State:
    """One sequence in a cache."""

    length: int = 0
    """Tokens held."""


S = TypeVar("S", bound=State)


class Cache(ABC, Generic[S]):
    """Sequences of one model; a forward runs over new tokens of several of them, in the order of ``begin``."""

    tokens = 0
    """Tokens of the forward that has begun."""

    @abstractmethod
    def new(self, capacity: int) -> S:
        """An empty sequence that will hold at most ``capacity`` tokens."""

    @abstractmethod
    def fork(self, state: S, capacity: int) -> S:
        """Another sequence that continues what ``state`` holds."""

    @abstractmethod
    def free(self, state: S) -> None:
        """Give up a sequence."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Causal attention of the forward's new tokens.

        Args:
            q: ``[T, Hq, D]``.
            k, v: ``[T, H, D]``, keys after RoPE.

        Returns:
            out ``[T, Hq, D]`` in the dtype of ``q``.
        """

    @abstractmethod
    def context_bytes(self, state: S) -> int:
        """Physical bytes of a sequence as a pool under pressure holds it."""

    def begin(self, batch: Sequence[tuple[S, int]]) -> None:
        """Start a forward of so many new tokens of each sequence, no sequence twice."""
        self.batch = list(batch)
        self.tokens = sum(count for _, count in batch)

    def end(self) -> None:
        """The forward has run through every layer."""
        for state, count in self.batch:
            state.length += count


@dataclass(eq=False)
class RawState(State):
    """16-bit keys and values, ``[layers, 2, H, capacity, D]``."""

    kv: Tensor = field(default_factory=lambda: torch.empty(0))


class RawCache(Cache[RawState]):
    """The uncompressed cache: softmax in float32 over 16-bit keys and values."""

    def __init__(self, shape: ModelShape, dtype: torch.dtype = torch.bfloat16) -> None:
        self.shape, self.dtype = shape, dtype

    def new(self, capacity: int) -> RawState:
        """See :meth:`Cache.new`."""
        lay = self.shape
        return RawState(0, torch.empty(lay.layers, 2, lay.kv_heads, capacity, lay.head_dim, dtype=self.dtype))

    def fork(self, state: RawState, capacity: int) -> RawState:
        """See :meth:`Cache.fork`; copies."""
        other = self.new(capacity)
        other.length = state.length
        other.kv[:, :, :, : state.length] = state.kv[:, :, :, : state.length]
        return other

    def free(self, state: RawState) -> None:
        """See :meth:`Cache.free`."""
        state.kv = torch.empty(0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See :meth:`Cache.attend`."""
        outs, first = [], 0
        for state, count in self.batch:
            span, last = slice(first, first + count), state.length + count
            keys, values = state.kv[layer]
            keys[:, state.length : last] = k[span].transpose(0, 1)
            values[:, state.length : last] = v[span].transpose(0, 1)
            outs.append(_exact(q[span], keys[:, :last], values[:, :last], scale))
            first += count
        return torch.cat(outs)

    def context_bytes(self, state: RawState) -> int:
        """See :meth:`Cache.context_bytes`."""
        return state.length * self.shape.token_bytes


def _exact(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Attention of the last ``[n, Hq, D]`` queries of ``[H, T, D]`` keys."""
    count, (heads, total, dim) = len(q), k.shape
    rows = q.unflatten(1, (heads, -1)).permute(1, 2, 0, 3)  # [H, g, n, D]
    if count == 1:
        # The query heads of a KV head as so many queries: nothing is repeated, nothing masked.
        out = torch.nn.functional.scaled_dot_product_attention(rows[None, :, :, 0], k[None], v[None], scale=scale)
        return out[0].reshape(1, -1, dim)
    keys, values = k.float().transpose(1, 2), v.float()
    out = torch.empty(heads, rows.shape[1], count, dim, dtype=q.dtype)
    for start in range(0, count, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, count)
        seen = total - count + stop
        scores = (rows[:, :, start:stop].float() * scale).flatten(1, 2) @ keys[:, :, :seen]
        scores = scores.view(heads, -1, stop - start, seen)
        future = torch.ones(stop - start, stop - start, dtype=torch.bool).triu_(1)
        scores[..., seen - (stop - start) :].masked_fill_(future, float("-inf"))
        weights = scores.softmax(-1).flatten(1, 2)
        out[:, :, start:stop] = (weights @ values[:, :seen]).view(heads, -1, stop - start, dim)
    return out.permute(2, 0, 1, 3).reshape(count, -1, dim)


@dataclass(eq=False)
class LeanState(State):
    """A row of open pages, and the logical ids of all pages, the open one last."""

    row: int = 0
    pages: list[int] = field(default_factory=list)


class LeanCache(Cache[LeanState]):
    """Our cache: raw open pages, committed records, attention by the read rule. Forks share committed pages.

    Args:
        shape: the model's.
        config: formats, window, rotation, significance.
        alphas: thresholds, float64 ``[layers, 3, H]``; the configuration's by default.
        page_size: tokens of a page.
        rows: sequences at a time.
        tokens: tokens at a time over all sequences, shared ones once; memory is touched only as it fills.
        dtype: of raw keys and values.
        significance: the strategy; the configuration's by default.
    """

    def __init__(
        self,
        shape: ModelShape,
        config: LeanKVConfig,
        page_size: int,
        rows: int,
        tokens: int,
        dtype: torch.dtype = torch.bfloat16,
        alphas: Tensor | None = None,
        significance: Significance | None = None,
    ) -> None:
        self.shape, self.page_size, self.window = shape, page_size, config.window
        self.layout: RecordLayout = make_layout(config, page_size, shape.kv_heads, shape.head_dim)
        pages = -(-tokens // page_size) + rows
        self.ops = get_ops("cpu", config.kernels)
        self.store = RecordStore(self.layout, shape.layers, pages, "cpu")
        if alphas is None:
            alphas = threshold_table(config.alphas, shape.layers, shape.kv_heads)
        strategy = build_significance(config) if significance is None else significance
        self.compressor = Compressor(self.ops, self.store, config.rotation, strategy, alphas)
        open_shape = (shape.layers, rows, page_size, shape.kv_heads, shape.head_dim)
        self.key, self.value = torch.zeros(open_shape, dtype=dtype), torch.zeros(open_shape, dtype=dtype)
        self.scores = torch.zeros(shape.layers, rows, shape.query_heads, page_size, dtype=torch.int32)
        self.table = torch.zeros(rows, 0, dtype=torch.int32)
        self.rows = list(range(rows))
        self.holders = [0] * (pages + 1)
        self.free_ids = list(range(pages, 0, -1))
        self.plan: Plan | None = None

    def new(self, capacity: int) -> LeanState:
        """See :meth:`Cache.new`."""
        width = -(-capacity // self.page_size) * self.page_size
        if width > self.table.shape[1]:
            self.table = torch.nn.functional.pad(self.table, (0, width - self.table.shape[1]))
        return LeanState(0, self.rows.pop())

    def fork(self, state: LeanState, capacity: int) -> LeanState:
        """See :meth:`Cache.fork`; only the open page is copied."""
        other = self.new(capacity)
        other.length = state.length
        for raw in (self.key, self.value, self.scores):
            raw[:, other.row] = raw[:, state.row]
        for page in state.pages[: state.length // self.page_size]:
            self.holders[page] += 1
            self._append(other, page)
        if state.length % self.page_size:
            self._append(other, self._take())
        return other

    def free(self, state: LeanState) -> None:
        """See :meth:`Cache.free`; a page goes with its last holder."""
        for page in state.pages:
            self.holders[page] -= 1
        gone = [page for page in state.pages if not self.holders[page]]
        if gone:
            self.ops.free_pages(self.store, torch.tensor(gone))
        self.free_ids += gone
        self.rows.append(state.row)
        state.pages = []

    def begin(self, batch: Sequence[tuple[LeanState, int]]) -> None:
        """See :meth:`Cache.begin`."""
        super().begin(batch)
        for state, count in batch:
            while len(state.pages) * self.page_size < state.length + count:
                self._append(state, self._take())
        rows = torch.tensor([state.row for state, _ in batch])
        prefix, extend = [state.length for state, _ in batch], [count for _, count in batch]
        self.plan = build_plan(rows, prefix, extend, self.table, self.page_size, self.window)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """See :meth:`Cache.attend`; pages that become full are committed."""
        plan = self.plan
        assert plan is not None
        kept = (self.key[layer], self.value[layer], self.scores[layer])
        raw = RawPages(*kept, plan.rows)
        if not plan.one_unit_per_row:
            key, value, scores = (page[plan.rows] for page in kept)
            raw = RawPages(key, value, scores, plan.unit_range)
        raw.write(plan, k.to(self.key.dtype), v.to(self.key.dtype))
        out = self.compressor.forward(layer, plan, q, raw, scale)
        if not plan.one_unit_per_row and plan.open.numel():
            for whole, page in zip(kept, raw[:3], strict=True):
                whole[plan.rows[plan.open]] = page[plan.open]
        return out.to(q.dtype)

    def context_bytes(self, state: LeanState) -> int:
        """See :meth:`Cache.context_bytes`: its records in whole blocks, near parts really cut but for the last
        ``window`` pages, which are all that a sequence goes on to read near; their table entries; one open page, raw
        with its column scores."""
        pages = torch.tensor(state.pages[: state.length // self.page_size], dtype=torch.int64)
        far = pages[: max(len(pages) - self.window, 0)]
        if len(far):
            self.ops.cut_pages(self.store, far, torch.full_like(far, LEVEL_FAR))
        blocks = int(self.ops.count_blocks(self.store, pages)[:, -1].sum()) if len(pages) else 0
        table = PAGE_TABLE_ENTRY * self.shape.layers * len(pages)
        raw = open_page_bytes(self.layout, self.shape.layers, self.shape.query_heads, self.key.element_size())
        return blocks * self.layout.block_bytes + table + raw

    def _take(self) -> int:
        page = self.free_ids.pop()
        self.holders[page] = 1
        return page

    def _append(self, state: LeanState, page: int) -> None:
        self.table[state.row, len(state.pages) * self.page_size] = page * self.page_size
        state.pages.append(page)
