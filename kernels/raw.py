"""Raw pages: what the tiles of a forward read of their own page, and the column scores it has gathered."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels.plan import Plan


class FullPages(NamedTuple):
    """What was observed of n full pages: all that tiers may depend on. Any leading dimensions, such as layers."""

    column_scores: Tensor
    """Integers ``[..., n, Hq, P]``, see ``leankv_kernels.reference.attention.attend_open``."""
    key: Tensor
    """Raw ``[..., n, P, H, D]``, after RoPE."""
    value: Tensor
    """Raw ``[..., n, P, H, Dv]``."""

    @property
    def num_kv_heads(self) -> int:
        """H."""
        return self.key.shape[-2]


class RawPages(NamedTuple):
    """Own pages of tiles, raw: open pages of rows, used in place, and others beside them.

    For a commit they may be of L layers that follow one another: a dimension more in front of all but ``at``.
    """

    key: Tensor  # model dtype [R, P, H, D], after RoPE; every position up to its tile's last query is written
    value: Tensor  # model dtype [R, P, H, Dv]
    scores: Tensor  # int32 [R, Hq, P], column scores, see ``attend_open``
    at: Tensor  # int64 [U], the page of each tile, no two alike

    @classmethod
    def whole(cls, key: Tensor, value: Tensor) -> RawPages:
        """Full pages ``[n, P, H, D]`` to commit, all of them, whose scores are not asked for."""
        n, page = key.shape[:2]
        scores = torch.zeros(n, 0, page, dtype=torch.int32, device=key.device)
        return cls(key, value, scores, torch.arange(n, device=key.device))

    def write(self, plan: Plan, key: Tensor, value: Tensor) -> None:
        """Write a forward's tokens ``[T, H, D]`` and ``[T, H, Dv]`` to their places in the tiles' pages."""
        place = (self.at[plan.token_tile], plan.token_pos)
        self.key[place], self.value[place] = key, value

    def of(self, tiles: Tensor) -> RawPages:
        """Those of some tiles, int64 ``[n]``."""
        return self._replace(at=self.at.index_select(0, tiles))

    def by_layer(self) -> RawPages:
        """With the dimension of layers."""
        if self.key.dim() == 5:
            return self
        return RawPages(self.key[None], self.value[None], self.scores[None], self.at)

    def full_pages(self) -> FullPages:
        """Those of ``at``, copied, ``[L, n, ...]``."""
        layers = self.by_layer()
        return FullPages(*(x.index_select(1, self.at) for x in (layers.scores, layers.key, layers.value)))
