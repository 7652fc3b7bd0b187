"""Commit of full pages: how the kernels are called."""

from __future__ import annotations

import ctypes
import math
from dataclasses import fields
from functools import cache

import torch
from torch import Tensor

from leankv_kernels.cuda.attend import DTYPES
from leankv_kernels.cuda.unit import Launcher, Unit
from leankv_kernels.layout import RecordLayout, RecordShape
from leankv_kernels.reference.codec import rotation_block
from leankv_kernels.store import RecordStore


class ShapeArgs(ctypes.Structure):
    """``RecordShape`` in record_format.h."""

    _fields_ = tuple(
        (field.name, ctypes.c_double if field.type == "float" else ctypes.c_longlong) for field in fields(RecordShape)
    )


@cache
def shape_args(layout: RecordLayout) -> ShapeArgs:
    """A layout's numbers."""
    shape = layout.shape
    return ShapeArgs(*(getattr(shape, field.name) for field in fields(RecordShape)))


class CommitArgs(ctypes.Structure):
    """``CommitArgs`` in csrc/commit.cuh."""

    _fields_ = (
        ("shape", ShapeArgs),
        *((name, ctypes.c_void_p) for name in ("blocks", "page_table", "ring", "ring_head", "ring_free", "usage")),
        *((name, ctypes.c_void_p) for name in ("pages", "key", "value", "tiers", "heads", "records")),
        ("norm", ctypes.c_double),
        *((name, ctypes.c_longlong) for name in ("num_blocks", "n")),
        *((name, ctypes.c_int) for name in ("layer", "dtype", "rotation_block")),
    )


def commit_pages(
    launcher: Launcher,
    store: RecordStore,
    layer: int,
    pages: Tensor,
    key: Tensor,
    value: Tensor,
    tiers: Tensor,
    rotation: str,
) -> None:
    """See ``reference.commit.commit_pages``; the same bytes. Two launches.

    Raises:
        ValueError: for a shape or dtype that the kernels are not written for.
    """
    (n, page, heads, dim) = key.shape
    if key.dtype not in DTYPES or key.dtype != value.dtype:
        raise ValueError(
            "the cuda kernels commit keys and values in float32, bfloat16 or float16, not "
            f"{key.dtype} and {value.dtype}: use another backend"
        )
    if not n:
        return
    key, value, tiers, pages = (x.contiguous() for x in (key, value, tiers, pages))
    words = torch.empty(n, heads, 4, dtype=torch.int32, device=key.device)
    records = torch.empty(n, 3, dtype=torch.int32, device=key.device)
    block = rotation_block(dim) if rotation != "none" else 1
    ring = store.ring
    tensors = (store.blocks, store.page_table[layer], ring.ids, ring.head, ring.free_blocks, store.usage_counts)
    args = CommitArgs(
        shape_args(store.layout),
        *(x.data_ptr() for x in (*tensors, pages, key, value, tiers, words, records)),
        *(1 / math.sqrt(block), store.num_blocks, n, layer, DTYPES[key.dtype], block),
    )
    unit = Unit("commit", (dim, page))
    launcher.launch(unit, "plan_commit", (1, 1, 1), args, key.device)
    launcher.launch(unit, "pack_pages", (heads, n, 1), args, key.device)
