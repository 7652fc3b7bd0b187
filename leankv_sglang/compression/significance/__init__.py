"""Significance strategies: how much a token is worth to a KV head, observed inside its own page.

A strategy sees nothing behind the page's end, so the tiers it leads to are the same whoever writes the page.
"""

from leankv_sglang.compression.significance.attention import Attention
from leankv_sglang.compression.significance.base import FullPages, Significance
from leankv_sglang.compression.significance.none import NoSignificance
from leankv_sglang.compression.significance.predictor import Predictor

STRATEGIES: dict[str, type[Significance]] = {s.name: s for s in (Attention, NoSignificance, Predictor)}
"""Every strategy by the name that ``--leankv-significance`` takes; ``predictor`` comes with a profile."""

__all__ = ["STRATEGIES", "Attention", "FullPages", "NoSignificance", "Predictor", "Significance"]
