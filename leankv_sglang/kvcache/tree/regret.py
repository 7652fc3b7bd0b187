"""What trimming would cost, and what dropping leaves has cost: tokens to compute again, per unit gained.

Where requests part from what is cached says what trimming costs before anything is trimmed: a hit there would have had
to end at the last boundary that trimming keeps. What dropping costs is seen when a page that was dropped comes again.
Knows pages only by marks, so it can be read and tested without SGLang; a mark stands for the tokens up to a page's end.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

PRIOR_UNITS = 1 / 16
"""Units, as a part of the pool, that each is taken to have gained before anything was seen."""
PRIOR_RATE = 0.05
"""Tokens a unit that dropping is taken to have cost for them."""

CAUTION = 0.7
"""How much cheaper trimming has to look than dropping: what is trimmed stays trimmed, what is kept can still be."""


class Regret:
    """Two rates, of about as many units as the pool has, and which of the two costs less.

    Args:
        units: of the pool, over which what was seen fades away.
        most_marks: dropped pages that are remembered.
    """

    def __init__(self, units: int, most_marks: int) -> None:
        self.units, self.most_marks = units, most_marks
        self._dropped: OrderedDict[int, None] = OrderedDict()
        prior = PRIOR_UNITS * units
        self._trim_lost, self._trim_gain = 0.0, prior
        self._drop_lost, self._drop_gain = PRIOR_RATE * prior, prior

    def inserted(self, units: int, near_units: float, parted: int, marks: Sequence[int], page_size: int) -> None:
        """A request's new pages came into the tree.

        Args:
            units: that they take.
            near_units: of them, those of near parts.
            parted: tokens between the last boundary that trimming keeps and the end of what was there.
            marks: of the pages.
            page_size: tokens of each.
        """
        fade = math.exp(-units / self.units)
        self._trim_lost, self._trim_gain = self._trim_lost * fade + parted, self._trim_gain * fade + near_units
        again = [mark for mark in marks if mark in self._dropped]
        for mark in again:
            del self._dropped[mark]
        self._drop_lost, self._drop_gain = self._drop_lost * fade + len(again) * page_size, self._drop_gain * fade

    def dropped(self, units: int, marks: Iterable[int]) -> None:
        """Dropping a leaf has gained so many units; these were its pages."""
        self._drop_gain += units
        for mark in marks:
            self._dropped[mark] = None
            self._dropped.move_to_end(mark)
        while len(self._dropped) > self.most_marks:
            self._dropped.popitem(last=False)

    @property
    def trim_rate(self) -> float:
        """Tokens to be computed again per unit that trimming gains."""
        return self._trim_lost / max(self._trim_gain, 1.0)

    @property
    def drop_rate(self) -> float:
        """Tokens computed again per unit that dropping gained."""
        return self._drop_lost / max(self._drop_gain, 1.0)

    def prefers_dropping(self) -> bool:
        """Whether a leaf is worth less than near parts."""
        return self.trim_rate > CAUTION * self.drop_rate


def marks_after(before: int, tokens: bytes, page_bytes: int) -> list[int]:
    """Marks of the pages of some tokens, behind a page with the mark ``before``."""
    marks = []
    for start in range(0, len(tokens) // page_bytes * page_bytes, page_bytes):
        before = hash((before, tokens[start : start + page_bytes]))
        marks.append(before)
    return marks
