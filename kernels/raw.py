"""Raw pages: what the tiles of a forward read of their own page, and the column scores it has gathered."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from leankv_kernels.plan import Plan


class RawPages(NamedTuple):
    """Own pages of tiles, raw. Where no two tiles share a row these are the open pages themselves, used in place."""

    key: Tensor  # model dtype [R, P, H, D], after RoPE; every position up to its tile's last query is written
    value: Tensor  # model dtype [R, P, H, D]
    scores: Tensor  # int32 [R, Hq, P], column scores, see ``attend_open``
    at: Tensor  # int64 [U], the page of each tile, no two alike

    def write(self, plan: Plan, key: Tensor, value: Tensor) -> None:
        """Write a forward's tokens ``[T, H, D]`` to their places in the tiles' pages."""
        place = (self.at[plan.token_tile], plan.token_pos)
        self.key[place], self.value[place] = key, value
