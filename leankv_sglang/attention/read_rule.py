"""One attention layer by the read rule, over raw own pages already laid out; serving and evaluation both call this.

Token t of page j reads: raw K/V of its own page up to t; the near view of the w pages before; the far view of all
earlier pages. Every input is fixed by tokens 0..t alone, so prefill, any chunk split, decode and a cache hit agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leankv_kernels import LOW, MID, Ops, Plan, RawPages, RecordStore, TierRule
from leankv_kernels.reference.tiers import choose_tiers
from leankv_sglang.compression.commit_memory import pages_at_once, slices
from leankv_sglang.compression.significance import Significance


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
        self,
        layer: int,
        plan: Plan,
        q: Tensor,
        raw: RawPages,
        scale: float,
        alphas: Tensor | None = None,
        commits: bool = True,
        dtype: torch.dtype | None = None,
        cap: float = 0.0,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attend, and commit.

        Args:
            layer: index in the store.
            plan: the forward's plan.
            q: ``[T, Hq, D]``.
            raw: own pages, this forward's tokens included; their column scores are brought up to date.
            scale: factor on q.k.
            alphas: float64 ``[layers, f, 3, H]`` for the pages in ``plan.full``; None where all have the compressor's.
            commits: whether pages in ``plan.full`` are committed; otherwise the caller does it with :meth:`commit`
                before any later forward.
            dtype: of the output.
            cap: scores s are ``cap * tanh(s / cap)``; 0 for none.
            sinks: float ``[Hq]``, a score of each query head that belongs to no token.

        Returns:
            out ``[T, Hq, D]``; float32 or more where no dtype is asked for.
        """
        own, own_lse = self.ops.attend_open(q, raw, plan, scale, cap=cap)
        if commits and plan.full.numel():
            pages = plan.own_pages.index_select(0, plan.full)
            chosen = None if alphas is None else alphas[layer : layer + 1]
            self.commit(layer, pages, raw.of(plan.full), plan.full_index, chosen)
        past, past_lse = self.ops.attend_committed(q, self.store, layer, plan, scale, self.rotation, cap=cap)
        out, _ = self.ops.merge_states(own, own_lse, past, past_lse, dtype, sinks=sinks)
        return out

    def commit(
        self, layer: int, pages: Tensor, raw: RawPages, page_index: Tensor, alphas: Tensor | None = None
    ) -> None:
        """Commit full pages of one layer, or of several that follow one another; in slices where it would take much
        memory, with the same blocks.

        Args:
            layer: index in the store, of the first.
            pages: int64 ``[n]``, logical ids.
            raw: the n pages.
            page_index: int64 ``[n]``, pages of its sequence before each.
            alphas: float64 ``[L, n, 3, H]``, their thresholds in these layers; None where all have the compressor's.
        """
        raw = raw.by_layer()
        layout, query_heads = self.store.layout, raw.scores.shape[2]
        at_once = pages_at_once(self.ops, layout, query_heads, raw.key.element_size())
        if len(raw.key) * len(pages) <= at_once:
            self._commit(layer, pages, raw, page_index, alphas)
            return
        for of, some in slices(len(raw.key), len(pages), at_once):
            part = RawPages(raw.key[of], raw.value[of], raw.scores[of], raw.at[some])
            chosen = None if alphas is None else alphas[of, some]
            self._commit(layer + of.start, pages[some], part, page_index[some], chosen)

    def _commit(self, layer: int, pages: Tensor, raw: RawPages, page_index: Tensor, alphas: Tensor | None) -> None:
        layers = slice(layer, layer + len(raw.key))
        chosen = self.alphas[layers, None] if alphas is None else alphas
        strategy, least = self.significance, LOW if self.store.layout.mid is None else MID
        if strategy.score is not None:
            rule = TierRule(strategy.score, strategy.weights, self.keep_first, least)
            tiers = self.ops.tier_pages(raw, layer, rule, chosen, page_index)
        else:
            tiers = choose_tiers(strategy(layers, raw.full_pages()), chosen, page_index, self.keep_first, least)
        self.ops.commit_pages(self.store, layer, pages, raw, tiers, self.rotation)
