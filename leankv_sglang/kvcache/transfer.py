"""Copies between host and device that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from leankv_kernels import host


class Arrival(NamedTuple):
    """Numbers on their way to the host."""

    values: Tensor
    """In main memory; to be read once they are here."""
    event: Any
    """torch.cuda.Event behind the copy, or None where there was none to make."""

    def here(self) -> bool:
        """Whether the numbers have arrived; does not wait."""
        return self.event is None or bool(self.event.query())

    def wait(self) -> None:
        """Wait until they have."""
        if self.event is not None:
            self.event.synchronize()


CopyOut = Callable[[Tensor], Arrival]
"""How numbers leave the device; the caller does not write to the tensor again."""


def copy_out(values: Tensor) -> Arrival:
    """Start one copy of a tensor into pinned memory, behind what its stream has been given; at once on a CPU."""
    if values.device.type == "cpu":
        return Arrival(values, None)
    here = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    here.copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return Arrival(here, event)


def put(numbers: NDArray[Any], device: torch.device | str) -> Tensor:
    """An array on the device, by one copy from pinned memory; the array may be written to afterwards."""
    return host.put(device, numbers)[0]
