"""The op registry: one signature per op, one implementation per backend, chosen by device or by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from leankv_kernels.layout import RecordLayout
from leankv_kernels.protocols import (
    AttendCommitted,
    AttendOpen,
    AttendWindow,
    CommitBytes,
    CommitPages,
    CountHeads,
    CountPages,
    CutPages,
    FreePages,
    Linear,
    MergeStates,
    PackPages,
    TierPages,
    UnpackPages,
    WriteTokens,
)
from leankv_kernels.raw import RawPages
from leankv_kernels.reference.commit import commit_bytes
from leankv_kernels.reference.linear import linear
from leankv_kernels.reference.packing import pack_pages, unpack_pages
from leankv_kernels.reference.tiers import tier_pages
from leankv_kernels.reference.window import attend_window
from leankv_kernels.store import RecordStore

if TYPE_CHECKING:
    from leankv_kernels.cuda import Launcher

BACKEND_ENV = "LEANKV_KERNELS"


class Ops(NamedTuple):
    """One backend's ops."""

    name: str
    attend_open: AttendOpen
    attend_committed: AttendCommitted
    merge_states: MergeStates
    commit_pages: CommitPages
    tier_pages: TierPages = tier_pages
    write_tokens: WriteTokens = RawPages.write
    free_pages: FreePages = RecordStore.free
    cut_pages: CutPages = RecordStore.cut
    count_pages: CountPages = RecordStore.count_pages
    pack_pages: PackPages = pack_pages
    unpack_pages: UnpackPages = unpack_pages
    attend_window: AttendWindow = attend_window
    count_heads: CountHeads = RecordStore.count_heads
    linear: Linear = linear
    variant: str = ""
    """What of the backend is in use, such as an instruction set."""
    takes_bounds: bool = False
    """Whether it reads lengths on the device alone where ``Plan.bounds`` says that the host's are bounds, as a captured
    graph needs it."""
    commit_bytes: CommitBytes = commit_bytes

    def describe(self) -> str:
        """Name and variant."""
        return f"{self.name} ({self.variant})" if self.variant else self.name


def _reference(device: torch.device) -> Ops:
    from leankv_kernels.reference.attention import attend_committed, attend_open, merge_states
    from leankv_kernels.reference.commit import commit_pages

    return Ops("reference", attend_open, attend_committed, merge_states, commit_pages)


def _cpu(device: torch.device) -> Ops:
    if device.type != "cpu":
        raise ValueError(f"the cpu kernels work in main memory, not on {device}: choose another backend")
    try:
        from leankv_kernels import cpu
    except ImportError as error:
        raise ValueError(f"the cpu kernels are not built ({error}): run `pip install -e .` in the checkout") from error
    return Ops(
        "cpu",
        cpu.attend_open,
        cpu.attend_committed,
        cpu.merge_states,
        cpu.commit_pages,
        free_pages=cpu.free_pages,
        cut_pages=cpu.cut_pages,
        count_pages=cpu.count_pages,
        pack_pages=cpu.pack_pages,
        unpack_pages=cpu.unpack_pages,
        attend_window=cpu.attend_window,
        count_heads=cpu.count_heads,
        linear=cpu.linear,
        variant=cpu.isa(),
        takes_bounds=True,
    )


def _triton(device: torch.device) -> Ops:
    try:
        from leankv_kernels import triton
    except ImportError as error:
        raise ValueError(f"the triton kernels cannot be loaded ({error}): install triton") from error
    triton.check_device(device)
    return Ops("triton", triton.attend_open, triton.attend_committed, triton.merge_states, triton.commit_pages)


def _cuda(device: torch.device) -> Ops:
    if device.type != "cuda" or torch.version.hip is not None or not torch.cuda.is_available():
        raise ValueError(f"the cuda kernels need an NVIDIA GPU, which {device} is not here: choose another backend")
    from leankv_kernels.cuda.driver import driver_of

    driver = driver_of(device)
    return _launched_by(driver, "cuda", f"sm_{driver.capability}" if driver.capability else "ptx")


def _cuda_emulated(device: torch.device) -> Ops:
    if device.type != "cpu":
        raise ValueError(f"the emulated cuda kernels work in main memory, not on {device}: choose another backend")
    from leankv_kernels.cuda.emulated import EMULATOR

    return _launched_by(EMULATOR, "cuda-emulated")


def _launched_by(launcher: Launcher, name: str, variant: str = "") -> Ops:
    from leankv_kernels import cuda

    return Ops(
        name,
        partial(cuda.attend_open, launcher),
        partial(cuda.attend_committed, launcher),
        partial(cuda.merge_states, launcher),
        partial(cuda.commit_pages, launcher),
        partial(cuda.tier_pages, launcher),
        partial(cuda.write_tokens, launcher),
        partial(cuda.free_pages, launcher),
        partial(cuda.cut_pages, launcher),
        partial(cuda.count_pages, launcher),
        partial(cuda.pack_pages, launcher),
        partial(cuda.unpack_pages, launcher),
        variant=variant,
        takes_bounds=True,
        commit_bytes=cuda.commit_bytes,
    )


_BACKENDS: dict[str, Callable[[torch.device], Ops]] = {
    "reference": _reference,
    "cpu": _cpu,
    "triton": _triton,
    "cuda": _cuda,
    "cuda-emulated": _cuda_emulated,
}


def _best(device: torch.device, layout: RecordLayout | None, group: int | None) -> str:
    """The cuda kernels where a GPU can run them, shipped or compiled, and they take layout and group; else triton on
    GPUs."""
    if device.type != "cuda":
        return "cpu" if device.type == "cpu" else "reference"
    if torch.version.hip is None and torch.cuda.is_available():
        from leankv_kernels.cuda.driver import can_run

        if can_run(device, layout, group):
            return "cuda"
    return "triton"


def available_backends() -> list[str]:
    """Names that ``get_ops`` takes besides ``auto``."""
    return sorted(_BACKENDS)


def backend_name(
    device: torch.device | str, name: str | None = None, layout: RecordLayout | None = None, group: int | None = None
) -> str:
    """Which backend :func:`get_ops` takes; loads nothing.

    Raises:
        ValueError: for one that does not exist, or whose source is not written for the layout or the query group.
    """
    if name in (None, "auto"):
        name = os.environ.get(BACKEND_ENV) or "auto"
    if name == "auto":
        name = _best(torch.device(device), layout, group)
    if name not in _BACKENDS:
        raise ValueError(f"kernel backend {name!r} does not exist: choose one of auto, {', '.join(_BACKENDS)}")
    if name in ("cuda", "cuda-emulated") and layout is not None:
        from leankv_kernels.cuda.attend import attend_shape

        attend_shape(layout, group or 1)
    return name


def get_ops(
    device: torch.device | str, name: str | None = None, layout: RecordLayout | None = None, group: int | None = None
) -> Ops:
    """The ops for a device.

    Args:
        device: where the tensors live.
        name: a backend, or ``auto`` or None for the environment's ``LEANKV_KERNELS`` and then the device's best.
        layout: what it must be able to read.
        group: query heads a KV head that it must be able to read it for; None where that is not known yet.

    Raises:
        ValueError: for a backend that does not exist, or cannot work on the device or with the layout or the group; a
            choice never falls back to another.
    """
    device = torch.device(device)
    ops = _BACKENDS[backend_name(device, name, layout, group)](device)
    if layout is not None and ops.name == "cuda":
        from leankv_kernels.cuda.attend import check_layout
        from leankv_kernels.cuda.compiler import capability_of, shared_bytes_of

        check_layout(layout, shared_bytes_of(capability_of(*torch.cuda.get_device_capability(device))), group or 1)
    return ops
