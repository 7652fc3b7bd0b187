"""Target: ``find_nccl_library`` of ``sglang.srt.distributed.device_communicators.pynccl_wrapper``; sglang 0.5.23.

Reason: with several ranks SGLang takes NCCL wherever torch was built for CUDA, so a machine without a GPU cannot start
them with the torch that PyPI has. Here such a machine has no NCCL, which SGLang knows how to go on without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from leankv_patches import hook

TARGET = "sglang.srt.distributed.device_communicators.pynccl_wrapper.find_nccl_library"


def find(original: Callable[[], str]) -> str:
    """Path of NCCL's library.

    Raises:
        ValueError: where there is no GPU for it; SGLang then takes torch's own collectives.
    """
    if not torch.cuda.is_available():
        raise ValueError("There is no GPU that NCCL could use.")
    return original()


def install() -> None:
    """Register the hook. Call while sglang loads its plugins."""
    hook.register(TARGET, find, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    return hook.first_problem({TARGET: []}, "NCCL on machines without a GPU")
