"""Device memory that kernels find as they left it: counters that are zero between launches."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_ENOUGH = 1 << 18
"""Numbers to begin with: more than the batches of CUDA graphs take, during whose capture nothing may be allocated."""


class Scratch:
    """Of one device. Kernels that share it run one after another, as they do on one stream."""

    def __init__(self, device: torch.device) -> None:
        self._zeros = torch.zeros(_ENOUGH if device.type == "cuda" else 0, dtype=torch.int32, device=device)
        # CUDA graphs that were captured with smaller ones go on using them.
        self._outgrown: list[Tensor] = []

    def zeros(self, count: int) -> Tensor:
        """At least so many int32 zeros, which a kernel leaves zero."""
        if len(self._zeros) < count:
            self._outgrown.append(self._zeros)
            self._zeros = torch.zeros(max(count, 2 * len(self._zeros)), dtype=torch.int32, device=self._zeros.device)
        return self._zeros


@cache
def scratch_of(device: torch.device) -> Scratch:
    """The device's own."""
    return Scratch(device)
