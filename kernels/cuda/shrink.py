"""Freeing and cutting the records of pages, and counting what they hold: how the kernels are called."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from leankv_kernels.cuda.commit import ShapeArgs, shape_args
from leankv_kernels.cuda.unit import Launcher, Unit
from leankv_kernels.store import RecordStore

THREADS = 512


class ShrinkArgs(ctypes.Structure):
    """``ShrinkArgs`` in csrc/headers.cuh."""

    _fields_ = (
        ("shape", ShapeArgs),
        *((name, ctypes.c_void_p) for name in ("blocks", "page_table", "ring", "ring_head", "ring_free", "usage")),
        *((name, ctypes.c_void_p) for name in ("pages", "level", "counts")),
        *((name, ctypes.c_longlong) for name in ("num_blocks", "n", "layers", "table_stride")),
    )


def shrink_args(
    store: RecordStore, pages: Tensor, level: Tensor | None = None, counts: Tensor | None = None
) -> ShrinkArgs:
    """What kernels are told of a store and of pages, contiguous like the rest; the caller keeps tensors alive."""
    ring, table = store.ring, store.page_table
    tensors = (store.blocks, table, ring.ids, ring.head, ring.free_blocks, store.usage_counts, pages)
    return ShrinkArgs(
        shape_args(store.layout),
        *(x.data_ptr() for x in tensors),
        *(None if x is None else x.data_ptr() for x in (level, counts)),
        *(store.num_blocks, len(pages), store.num_layers, table.stride(0)),
    )


def _launch(
    launcher: Launcher,
    kernel: str,
    store: RecordStore,
    pages: Tensor,
    level: Tensor | None = None,
    counts: Tensor | None = None,
    blocks: int = 1,
) -> None:
    pages = pages.contiguous()
    args = shrink_args(store, pages, level, counts)
    launcher.launch(Unit("shrink"), kernel, (blocks, 1, 1), args, pages.device)


def free_pages(launcher: Launcher, store: RecordStore, pages: Tensor) -> None:
    """See ``RecordStore.free``. One launch."""
    if pages.numel():
        _launch(launcher, "free_pages", store, pages)


def cut_pages(launcher: Launcher, store: RecordStore, pages: Tensor, level: Tensor) -> None:
    """See ``RecordStore.cut``. One launch."""
    if pages.numel():
        _launch(launcher, "cut_pages", store, pages, level.to(torch.int64).contiguous())


def count_pages(launcher: Launcher, store: RecordStore, pages: Tensor) -> Tensor:
    """See ``RecordStore.count_pages``. One launch."""
    counts = torch.empty(len(pages), 6, dtype=torch.int32, device=pages.device)
    if pages.numel():
        _launch(launcher, "count_pages", store, pages, counts=counts, blocks=-(-len(pages) // THREADS))
    return counts
