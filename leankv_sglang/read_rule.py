"""One attention layer by the read rule, over raw own pages already laid out; serving and evaluation both call this.

Token t of page j reads: raw K/V of its own page up to t; the near view of the w pages before; the far view of all
earlier pages. Every input is fixed by tokens 0..t alone, so prefill, any chunk split, decode and a cache hit agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from leankv_kernels import Ops, Plan, RawPages, RecordStore
from leankv_kernels.reference.commit import choose_tiers
from leankv_sglang.significance import Significance


class PageThresholds(NamedTuple):
    """Thresholds of the pages that one forward commits, where they differ: float64 ``[layers, f, H]``."""

    high: Tensor
    low: Tensor


@dataclass
class Compressor:
    """What turns full pages into records: the ops, where records go, and how tiers are chosen.

    ``alpha_high`` and ``alpha_low`` are float64 ``[layers, H]``: the thresholds of pages that have none of their own.
    """

    ops: Ops
    store: RecordStore
    rotation: str
    significance: Significance
    alpha_high: Tensor
    alpha_low: Tensor

    def forward(
        self, layer: int, plan: Plan, q: Tensor, raw: RawPages, scale: float, thresholds: PageThresholds | None = None
    ) -> Tensor:
        """Attend and commit.

        Args:
            layer: index in the store.
            plan: the forward's plan.
            q: ``[T, Hq, D]``.
            raw: own pages, this forward's tokens included; their column scores are brought up to date.
            scale: factor on q.k.
            thresholds: of each page in ``plan.full``; None where all have the compressor's own.

        Returns:
            out ``[T, Hq, D]``, float32 or more.
        """
        own, own_lse = self.ops.attend_open(q, raw, plan, scale)
        if plan.full.numel():
            self._commit(layer, plan, raw, thresholds)
        past, past_lse = self.ops.attend_committed(q, self.store, layer, plan, scale, self.rotation)
        out, _ = self.ops.merge_states(own, own_lse, past, past_lse)
        return out

    def _commit(self, layer: int, plan: Plan, raw: RawPages, thresholds: PageThresholds | None) -> None:
        at = raw.at.index_select(0, plan.full)
        scores, key, value = (x.index_select(0, at) for x in (raw.scores, raw.key, raw.value))
        significance = self.significance(scores, self.store.layout.num_kv_heads)
        high, low = thresholds or (self.alpha_high, self.alpha_low)
        tiers = choose_tiers(significance, high[layer], low[layer], plan.sequence_start)
        pages = plan.own_pages.index_select(0, plan.full)
        self.ops.commit_pages(self.store, layer, pages, key, value, tiers, self.rotation)
