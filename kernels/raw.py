"""Raw pages: what the units of a forward read of their own page, and the column scores it has gathered."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from leankv_kernels.plan import Plan


class RawPages(NamedTuple):
    """Own pages of units, raw. Where no two units share a row these are the open pages themselves, used in place."""

    key: Tensor  # model dtype [R, P, H, D], after RoPE; every position up to its unit's last query is written
    value: Tensor  # model dtype [R, P, H, D]
    scores: Tensor  # int32 [R, Hq, P], column scores, see ``attend_open``
    at: Tensor  # int64 [U], the page of each unit, no two alike

    def write(self, plan: Plan, key: Tensor, value: Tensor) -> None:
        """Write a forward's tokens ``[T, H, D]`` to their places in the units' pages."""
        place = (self.at[plan.token_unit], plan.token_pos)
        self.key[place], self.value[place] = key, value
