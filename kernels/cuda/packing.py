"""Copying pages out of a store and into it: how the kernels are called."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from leankv_kernels.cuda.shrink import ShrinkArgs, shrink_args
from leankv_kernels.cuda.unit import Launcher, Unit
from leankv_kernels.packed import PackedPages
from leankv_kernels.store import RecordStore

THREADS = 256
_UNIT = Unit("packing")


class PackArgs(ctypes.Structure):
    """``PackArgs`` in csrc/packing.cuh."""

    _fields_ = (
        ("store", ShrinkArgs),
        *((name, ctypes.c_void_p) for name in ("far", "near", "far_bytes", "near_bytes", "held")),
        *((name, ctypes.c_void_p) for name in ("far_at", "near_at", "taken")),
        *((name, ctypes.c_longlong) for name in ("far_room", "near_room")),
    )


def _args(store: ShrinkArgs, packed: PackedPages, at: Tensor, taken: Tensor | None = None) -> PackArgs:
    data = (packed.far, packed.near, packed.far_bytes, packed.near_bytes, packed.level, *at)
    return PackArgs(
        store,
        *(x.data_ptr() for x in data),
        None if taken is None else taken.data_ptr(),
        *(packed.far.numel(), packed.near.numel()),
    )


def _starts(lengths: Tensor) -> Tensor:
    flat = lengths.view(2, -1)
    return flat.cumsum(1) - flat


def pack_pages(
    launcher: Launcher, store: RecordStore, pages: Tensor, level: Tensor, room: tuple[int, int] | None = None
) -> PackedPages:
    """See ``reference.packing.pack_pages``. Two launches; with ``room`` the bytes are written to pinned main memory by
    the device itself, and nothing is waited for."""
    n, layers, device = len(pages), store.num_layers, pages.device
    pages, level = pages.contiguous(), level.to(torch.int64).contiguous()
    lengths = torch.zeros(2, n, layers, dtype=torch.int64, device=device)
    packed = PackedPages(
        torch.empty(0, dtype=torch.uint8, device=device),
        lengths[0],
        torch.empty(0, dtype=torch.uint8, device=device),
        lengths[1],
        torch.empty(n, dtype=torch.int64, device=device),
    )
    if not n:
        return packed
    of_store = shrink_args(store, pages, level)
    grid = (-(-n * layers // THREADS), 1, 1)
    launcher.launch(_UNIT, "measure_packed", grid, _args(of_store, packed, lengths), device)
    at = _starts(lengths)
    if room is None:
        far, near = (torch.empty(size, dtype=torch.uint8, device=device) for size in lengths.flatten(1).sum(1).tolist())
    else:
        far, near = (torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda") for size in room)
    packed = packed._replace(far=far, near=near)
    launcher.launch(_UNIT, "gather_pages", (layers, n, 1), _args(of_store, packed, at), device)
    return packed


def unpack_pages(launcher: Launcher, store: RecordStore, pages: Tensor, packed: PackedPages) -> None:
    """See ``reference.packing.unpack_pages``; the same blocks in the same order. One launch, and nothing is waited
    for."""
    n, layers, device = len(pages), store.num_layers, pages.device
    if not n:
        return
    lay, ring = store.layout, store.ring
    lengths = torch.stack([packed.far_bytes, packed.near_bytes])
    blocks = -(-(lengths.sum(0) + 4 * lay.max_blocks) // lay.block_bytes)
    by_layer = blocks.t().flatten()
    ends = by_layer.cumsum(0)
    whole = PackedPages(*(part.contiguous() for part in packed))
    pages, at, taken = pages.contiguous(), _starts(lengths), (ends - by_layer).contiguous()
    args = _args(shrink_args(store, pages), whole, at, taken)
    launcher.launch(_UNIT, "scatter_pages", (layers, n, 1), args, device)
    ring.skip(ends[-1])
