"""Windows of tokens to calibrate on: running text, and text that comes back after other text.

A head that only matters when something is to be found again looks useless on running text alone; the second kind of
window is where it is missed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leankv_sglang.errors import LeanKVError


def default_text() -> str:
    """English prose and code that every Python comes with: the documentation behind ``help()``."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def calibration_windows(tokenizer: Any, texts: Sequence[str], count: int, length: int, seed: int = 0) -> list[Tensor]:
    """Windows int64 ``[length]``, taking turns among texts, every second one a recall window.

    In a recall window the first three eighths come back at the end, behind a quarter of other text.

    Args:
        tokenizer: Hugging Face's.
        texts: each longer than a window.
        count: how many windows.
        length: tokens of a window.
        seed: where the windows begin.

    Raises:
        LeanKVError: for a text that is too short.
    """
    rng = random.Random(seed)
    tokens = [tokenizer(text, return_tensors="pt").input_ids[0] for text in texts]
    for ids in tokens:
        if len(ids) < 2 * length:
            raise LeanKVError(f"--text has {len(ids):,} tokens; calibrate on at least {2 * length:,}.")

    def passage(ids: Tensor, size: int) -> Tensor:
        start = rng.randrange(len(ids) - size)
        return ids[start : start + size]

    windows = []
    for i in range(count):
        ids = tokens[i // 2 % len(tokens)]
        if i % 2 == 0:
            windows.append(passage(ids, length))
            continue
        again = passage(ids, 3 * length // 8)
        windows.append(torch.cat([again, passage(ids, length - 2 * len(again)), again]))
    return windows
