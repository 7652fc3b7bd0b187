"""One attention layer by the read rule, over raw own pages already laid out; serving and evaluation both call this.

Token t of page j reads: raw K/V of its own page up to t; the near view of the w pages before; the far view of all
earlier pages. Every input is fixed by tokens 0..t alone, so prefill, any chunk split, decode and a cache hit agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leankv_kernels import LOW, MID, Ops, Plan, RawPages, RecordStore
from leankv_kernels.reference.commit import choose_tiers
from leankv_sglang.compression.significance import FullPages, Significance


@dataclass
class Compressor:
    """What turns full pages into records: the ops, where records go, and how tiers are chosen.

    ``alphas`` are float64 ``[layers, 3, H]`` (see ``choose_tiers``): thresholds of pages that have none of their own.
    Tokens of the first ``keep_first`` pages of a sequence are mid at least, or low where there is no middle tier, in
    heads that keep anything.
    """

    ops: Ops
    store: RecordStore
    rotation: str
    significance: Significance
    alphas: Tensor
    keep_first: int = 0

    def forward(
        self, layer: int, plan: Plan, q: Tensor, raw: RawPages, scale: float, alphas: Tensor | None = None
    ) -> Tensor:
        """Attend and commit.

        Args:
            layer: index in the store.
            plan: the forward's plan.
            q: ``[T, Hq, D]``.
            raw: own pages, this forward's tokens included; their column scores are brought up to date.
            scale: factor on q.k.
            alphas: float64 ``[layers, f, 3, H]`` for the pages in ``plan.full``; None where all have the compressor's.

        Returns:
            out ``[T, Hq, D]``, float32 or more.
        """
        own, own_lse = self.ops.attend_open(q, raw, plan, scale)
        if plan.full.numel():
            self._commit(layer, plan, raw, alphas)
        past, past_lse = self.ops.attend_committed(q, self.store, layer, plan, scale, self.rotation)
        out, _ = self.ops.merge_states(own, own_lse, past, past_lse)
        return out

    def _commit(self, layer: int, plan: Plan, raw: RawPages, alphas: Tensor | None) -> None:
        at = raw.at.index_select(0, plan.full)
        scores, key, value = (x.index_select(0, at) for x in (raw.scores, raw.key, raw.value))
        significance = self.significance(layer, FullPages(scores, key, value))
        chosen = (self.alphas if alphas is None else alphas)[layer]
        least = LOW if self.store.layout.mid is None else MID
        tiers = choose_tiers(significance, chosen, plan.full_index, self.keep_first, least)
        pages = plan.own_pages.index_select(0, plan.full)
        self.ops.commit_pages(self.store, layer, pages, key, value, tiers, self.rotation)
