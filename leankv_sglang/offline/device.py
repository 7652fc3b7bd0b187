"""Where a model is looked at: the GPU where there is one."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import TYPE_CHECKING

from leankv_sglang.errors import LeanKVError

if TYPE_CHECKING:
    import torch

AUTO = "auto"


def add_device_flag(parser: ArgumentParser) -> None:
    """``--device``, as :func:`pick_device` takes it."""
    parser.add_argument(
        "--device", default=AUTO, metavar="DEVICE", help="cpu, cuda or cuda:N (default: the GPU if there is one)"
    )


def pick_device(name: str) -> torch.device:
    """The device of a name.

    Raises:
        LeanKVError: for one that is not here.
    """
    import torch

    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError, OverflowError):
        raise LeanKVError(f"--device takes cpu, cuda or cuda:N, not {name!r}.") from None
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise LeanKVError(f"--device {name}: this machine has {count} CUDA GPUs; --device cpu always works.")
    return device
