"""Our cache for packed sequences: raw open pages, committed records, attention by the read rule, as in the server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leankv_kernels import Plan, RecordLayout, RecordStore, build_plan, get_ops
from leankv_kernels.layout import LEVEL_FAR
from leankv_sglang.attention.read_rule import Compressor
from leankv_sglang.compression.build import build_significance, layout_for
from leankv_sglang.compression.significance import Significance
from leankv_sglang.compression.thresholds import threshold_table
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.kvcache.open_pages import OpenPages
from leankv_sglang.kvcache.sizing import PAGE_TABLE_ENTRY
from leankv_sglang.models.shape import ModelShape
from leankv_sglang.offline.caches import Cache, State
from leankv_sglang.offline.raw_rows import Rule


@dataclass(eq=False)
class LeanState(State):
    """A row of open pages, and the logical ids of all pages, the open one last."""

    pages: list[int] = field(default_factory=list)


class LeanCache(Cache[LeanState]):
    """Our cache: raw open pages, committed records, attention by the read rule. Forks share committed pages.

    Args:
        shape: the model's.
        config: formats, near pages, rotation, significance.
        alphas: thresholds, float64 ``[layers, 3, H]``; the configuration's by default.
        page_size: tokens of a page.
        rows: sequences at a time.
        tokens: tokens at a time over all sequences, shared ones once; memory is touched only as it fills.
        dtype: of raw keys and values.
        significance: the strategy; the configuration's by default.
        device: where everything lives.
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
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(rows, dtype, device)
        self.shape, self.page_size, self.near_pages = shape, page_size, config.near_pages
        self.layout: RecordLayout = layout_for(config, page_size, shape)
        pages = -(-tokens // page_size) + rows
        self.ops = get_ops(device, config.kernels, self.layout, shape.query_heads // shape.kv_heads)
        self.store = RecordStore(self.layout, shape.layers, pages, device)
        if alphas is None:
            alphas = threshold_table(config.alphas, shape.layers, shape.kv_heads)
        strategy = build_significance(config, device) if significance is None else significance
        how = (config.rotation, strategy, alphas.to(device), config.keep_first)
        self.compressor = Compressor(self.ops, self.store, *how)
        heads = (shape.kv_heads, shape.head_dim, shape.query_heads)
        where = (dtype, device, self.ops.write_tokens)
        self.open_pages = OpenPages(shape.layers, rows, page_size, *heads, *where, v_head_dim=shape.v_head_dim)
        self.table = torch.zeros(rows, 0, dtype=torch.int32, device=device)
        self.rows = list(range(rows))
        self.holders = [0] * (pages + 1)
        self.free_ids = list(range(pages, 0, -1))
        self.plan: Plan | None = None

    def new(self, capacity: int) -> LeanState:
        """See :meth:`Cache.new`."""
        self.windows.reserve(capacity)
        width = -(-capacity // self.page_size) * self.page_size
        if width > self.table.shape[1]:
            self.table = torch.nn.functional.pad(self.table, (0, width - self.table.shape[1]))
        return LeanState(0, self.rows.pop())

    def fork(self, state: LeanState, capacity: int) -> LeanState:
        """See :meth:`Cache.fork`; only the open page is copied."""
        other = self.new(capacity)
        other.length = state.length
        self.open_pages.copy(state.row, other.row)
        self.windows.copy(state.row, other.row, state.length)
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
            self.ops.free_pages(self.store, torch.tensor(gone, device=self.device))
        self.free_ids += gone
        self.rows.append(state.row)
        state.pages = []

    def begin(self, batch: Sequence[tuple[LeanState, int]]) -> None:
        """See :meth:`Cache.begin`."""
        super().begin(batch)
        for state, count in batch:
            while len(state.pages) * self.page_size < state.length + count:
                self._append(state, self._take())
        rows = torch.tensor([state.row for state, _ in batch], device=self.device)
        prefix, extend = [state.length for state, _ in batch], [count for _, count in batch]
        self.plan = build_plan(rows, prefix, extend, self.table, self.page_size, self.near_pages)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """See :meth:`Cache.attend`; pages that become full are committed."""
        plan = self.plan
        assert plan is not None
        raw = self.open_pages.raw(layer, plan, k, v)
        out = self.compressor.forward(layer, plan, q, raw, rule.scale, cap=rule.cap, sinks=rule.sinks)
        self.open_pages.keep(layer, plan, raw)
        return out.to(q.dtype)

    def context_bytes(self, state: LeanState) -> int:
        """See :meth:`Cache.context_bytes`: its records in whole blocks, near parts really cut but for the last
        ``near_pages`` pages, which are all that a sequence goes on to read near; their table entries; one open page,
        raw, with its column scores."""
        pages = torch.tensor(state.pages[: state.length // self.page_size], dtype=torch.int64, device=self.device)
        far = pages[: max(len(pages) - self.near_pages, 0)]
        if len(far):
            self.ops.cut_pages(self.store, far, torch.full_like(far, LEVEL_FAR))
        blocks = int(self.ops.count_pages(self.store, pages)[:, 2].sum()) if len(pages) else 0
        table = PAGE_TABLE_ENTRY * self.shape.layers * len(pages)
        return blocks * self.layout.block_bytes + table + self.open_pages.row_nbytes()

    def _take(self) -> int:
        page = self.free_ids.pop()
        self.holders[page] = 1
        return page

    def _append(self, state: LeanState, page: int) -> None:
        self.table[state.row, len(state.pages) * self.page_size] = page * self.page_size
        state.pages.append(page)
