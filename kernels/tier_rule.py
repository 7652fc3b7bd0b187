"""By what rule the tokens of full pages get their tiers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from leankv_kernels.layout import LOW

SCORES = ("attention", "none", "predictor")
"""How significant a token can be found, see ``reference.tiers.significance_of``."""


class TierRule(NamedTuple):
    """A score, compared with thresholds; what is kept whatever it says, see ``reference.tiers.choose_tiers``."""

    score: str
    """One of ``SCORES``."""
    weights: Tensor | None = None
    """Of ``predictor``: int64 ``[layers, H, F]``."""
    keep_first: int = 0
    """How many pages of a sequence are first pages."""
    least: int = LOW
    """Their least tier, ``LOW`` or ``MID``."""
