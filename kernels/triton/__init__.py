"""The ops in Triton, for GPUs; under Triton's interpreter also on tensors in main memory.

Results are float32. Everything that orders a sum is fixed by the model's shape, so a query's result does not depend on
its batch or on the chunk split. No op asks the device anything, and launches depend on host numbers alone, so a forward
can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch

from leankv_kernels.triton.attend_committed import attend_committed
from leankv_kernels.triton.attend_open import attend_open
from leankv_kernels.triton.commit import commit_pages
from leankv_kernels.triton.config import INTERPRETED
from leankv_kernels.triton.merge import merge_states

__all__ = ["attend_committed", "attend_open", "check_device", "commit_pages", "merge_states"]


def check_device(device: torch.device) -> None:
    """Raises ValueError, saying what to do, where the kernels cannot work on a device."""
    if device.type == "cpu" and not INTERPRETED:
        raise ValueError(
            "the triton kernels need a GPU: choose another backend, or set TRITON_INTERPRET=1 before triton is "
            "imported, to run them very slowly in its interpreter"
        )
