"""One attention layer by the read rule, over raw own pages already laid out; serving and evaluation both call this.

Token t of page j reads: raw K/V of its own page up to t; the near view of the w pages before; the far view of all
earlier pages. Every input is fixed by tokens 0..t alone, so prefill, any chunk split, decode and a cache hit agree.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from leankv_kernels import Ops, Plan, RecordStore
from leankv_kernels.reference.commit import choose_tiers
from leankv_sglang.significance import Significance


@dataclass
class Compressor:
    """What turns full pages into records: the ops, where records go, and how tiers are chosen.

    ``alpha_high`` and ``alpha_low`` are float64 ``[layers, H]``.
    """

    ops: Ops
    store: RecordStore
    rotation: str
    significance: Significance
    alpha_high: Tensor
    alpha_low: Tensor

    def forward(
        self,
        layer: int,
        plan: Plan,
        q: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        carried: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend and commit.

        Args:
            layer: index in the store.
            plan: the forward's plan.
            q: ``[T, Hq, D]``.
            key, value: raw pages ``[U, P, H, D]``, every position up to each unit's last query written.
            scale: factor on q.k.
            carried: integers ``[c, Hq, P]``, column scores that ``plan.carried`` units bring along.

        Returns:
            out float64 ``[T, Hq, D]`` and column scores int64 ``[U, Hq, P]``, carried ones included.
        """
        own, own_lse, scores = self.ops.attend_open(q, key, value, plan, scale)
        if carried is not None:
            scores[plan.carried] += carried
        if plan.full.numel():
            self._commit(layer, plan, key, value, scores)
        past, past_lse = self.ops.attend_committed(q, self.store, layer, plan, scale, self.rotation)
        out, _ = self.ops.merge_states(own, own_lse, past, past_lse)
        return out, scores

    def _commit(self, layer: int, plan: Plan, key: Tensor, value: Tensor, scores: Tensor) -> None:
        full = plan.full
        significance = self.significance(scores[full], self.store.layout.num_kv_heads)
        tiers = choose_tiers(significance, self.alpha_high[layer], self.alpha_low[layer], plan.sequence_start)
        self.ops.commit_pages(self.store, layer, plan.own_pages[full], key[full], value[full], tiers, self.rotation)
