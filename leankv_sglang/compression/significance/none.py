"""No significance: the tier follows from the position alone."""

from __future__ import annotations

from typing import ClassVar

from leankv_sglang.compression.significance.base import Significance


class NoSignificance(Significance):
    """Every token but the sinks is low; recency alone (the near view) keeps tokens high."""

    name: ClassVar[str] = "none"
    uses_thresholds: ClassVar[bool] = False
    score: ClassVar[str | None] = "none"
