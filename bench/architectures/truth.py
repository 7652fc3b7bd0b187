"""What transformers says of the same tokens, in float32 and in the weights' own bfloat16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.models_served import Model

HORIZON = 64
"""Tokens between what is changed and where that is looked for; more than a page, less than a window."""


class Truth:
    """One model in transformers.

    Args:
        model: its entry.
        folder: its weights.
        dtype: of its computation.
    """

    def __init__(self, model: Model, folder: Path, dtype: torch.dtype) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        cls = getattr(transformers, model.auto)
        # Eager attention knows windows, caps and sinks; no other does all of them.
        self._model = cls.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()

    @torch.no_grad()
    def logprobs(self, sequence: Sequence[int]) -> list[float]:
        """Of every token behind the first."""
        ids = torch.tensor([list(sequence)])
        logits: Any = self._model(ids, use_cache=False).logits[0, :-1]
        found: list[float] = logits.float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
        return found

    def context(self, sequence: Sequence[int]) -> float:
        """How much a page far before matters: the mean change of what is said of the last 8 tokens."""
        changed = list(sequence)
        end = len(changed) - HORIZON
        changed[: end - 8] = reversed(changed[: end - 8])
        pairs = zip(self.logprobs(sequence)[-8:], self.logprobs(changed)[-8:], strict=True)
        return sum(abs(a - b) for a, b in pairs) / 8


def mean_gap(found: Sequence[Sequence[float | None]], true: Sequence[Sequence[float]], last: int = 0) -> float:
    """The mean difference of log-probabilities, NaN where one is.

    Args:
        found: of every sequence.
        true: the same.
        last: how many of each count, 0 for all.
    """
    gaps = [
        abs((math.nan if a is None else a) - b)
        for one, other in zip(found, true, strict=True)
        for a, b in list(zip(one, other, strict=True))[-last:]
    ]
    return sum(gaps) / len(gaps)
