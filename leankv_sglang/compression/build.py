"""From a configuration to its strategy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from leankv_sglang.compression.profile import read_predictor
from leankv_sglang.compression.significance import STRATEGIES, Predictor, Significance
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError


def build_significance(
    config: LeanKVConfig,
    device: torch.device | str = "cpu",
    of_rank: Callable[[Tensor], Tensor] = lambda table: table,
) -> Significance:
    """The strategy of a configuration; a predictor is read from the profile it came with.

    Args:
        config: names the strategy.
        device: where it works.
        of_rank: from a table ``[layers, all KV heads, ...]`` to what this rank holds.

    Raises:
        LeanKVError: where the predictor is not, or no longer, to be had.
    """
    if config.significance != Predictor.name:
        return STRATEGIES[config.significance]()
    if not config.predictor:
        raise LeanKVError("--leankv-significance predictor comes with a profile; give --leankv-profile instead.")
    return Predictor(of_rank(read_predictor(config.predictor)).to(device))
