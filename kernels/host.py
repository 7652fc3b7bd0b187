"""What the host works out for the device: numbers of runs, and arrays on their way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.int64]


def runs(counts: Numbers) -> tuple[Numbers, Numbers]:
    """Of the places of runs one after another, ``counts[i]`` places the i-th: each one's run and its number in it,
    int64 ``[sum]``.
    """
    run = np.repeat(np.arange(len(counts)), counts)
    return run, np.arange(len(run)) - (np.cumsum(counts) - counts)[run]


def staged(size: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Main memory ``[size]`` that can be copied to the device without waiting: pinned, where that is a GPU."""
    return torch.empty(size, dtype=dtype, pin_memory=torch.device(device).type == "cuda")


def put(device: torch.device | str, *arrays: NDArray[Any]) -> list[Tensor]:
    """Arrays of one dtype on the device, in one copy that the host does not wait for; they may be written to
    afterwards.
    """
    flat = staged(sum(a.size for a in arrays), torch.from_numpy(arrays[0][:0]).dtype, device)
    np.concatenate([a.ravel() for a in arrays], out=flat.numpy())
    parts = flat.to(device, non_blocking=True).split([a.size for a in arrays])
    return [part.view(a.shape) for part, a in zip(parts, arrays, strict=True)]
