"""Tiers and commit of full pages: how the kernels are called."""

from __future__ import annotations

import ctypes
import math
from dataclasses import fields
from functools import cache

import torch
from torch import Tensor

from leankv_kernels.cuda.attend import DTYPES
from leankv_kernels.cuda.scratch import scratch_of
from leankv_kernels.cuda.unit import MAX_GRID, Launcher, Unit
from leankv_kernels.layout import RecordLayout, RecordShape
from leankv_kernels.raw import RawPages
from leankv_kernels.reference import tiers as reference
from leankv_kernels.reference.codec import rotation_block
from leankv_kernels.store import RecordStore
from leankv_kernels.tier_rule import SCORES, TierRule

PAIRS, BLOCKS = 64, 128
"""Records' KV heads for each block that counts tiers, and blocks at most."""


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
        *((name, ctypes.c_void_p) for name in ("pages", "at", "key", "value", "tiers", "heads", "records", "arrivals")),
        *((name, ctypes.c_double) for name in ("norm", "value_norm")),
        *((name, ctypes.c_longlong) for name in ("num_blocks", "n", "layers", "rows", "table_stride")),
        *((name, ctypes.c_int) for name in ("layer", "dtype", "rotation_block", "value_rotation_block")),
    )


class TierArgs(ctypes.Structure):
    """``TierArgs`` in csrc/tiers.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("key", "value", "scores", "at", "page_index")),
        *((name, ctypes.c_void_p) for name in ("weights", "uniform", "alphas", "tiers")),
        *((name, ctypes.c_double) for name in ("feature_steps", "all_steps", "least_attention", "least_energy")),
        *((name, ctypes.c_double) for name in ("largest", "never")),
        *((name, ctypes.c_longlong) for name in ("n", "rows", "keep_first")),
        *((name, ctypes.c_int) for name in ("heads", "group", "score", "dtype", "least", "sinks", "of_pages")),
    )


def commit_unit(head_dim: int, page_size: int, v_head_dim: int = 0) -> Unit:
    """What is compiled for pages of keys, and of values, so wide; these are as wide as keys unless it is given."""
    return Unit.of("commit", (head_dim, page_size), v_head_dim or head_dim)


def _layers_of(raw: RawPages, pages: int) -> RawPages:
    """Raw pages with their layers, checked."""
    key, value = raw.key, raw.value
    if key.dtype not in DTYPES or key.dtype != value.dtype:
        raise ValueError(
            "the cuda kernels commit keys and values in float32, bfloat16 or float16, not "
            f"{key.dtype} and {value.dtype}: use another backend"
        )
    if max(pages, len(key)) > MAX_GRID:
        raise ValueError(f"the cuda kernels commit {MAX_GRID} pages at a time, not {pages}")
    return RawPages(*(x.contiguous() for x in raw.by_layer()))


def tier_pages(
    launcher: Launcher, raw: RawPages, layer: int, rule: TierRule, alphas: Tensor, page_index: Tensor
) -> Tensor:
    """See ``reference.tiers.tier_pages``. One launch.

    Raises:
        ValueError: for a shape or dtype that the kernels are not written for.
    """
    n = len(raw.at)
    raw = _layers_of(raw, n)
    layers, rows, page, heads, dim = raw.key.shape
    tiers = torch.empty(layers, n, heads, page, dtype=torch.uint8, device=raw.key.device)
    alphas, page_index = alphas.contiguous(), page_index.contiguous()
    if alphas.dtype != torch.float64 or raw.scores.dtype != torch.int32:
        raise ValueError("thresholds are float64 and column scores int32")
    weights = None if rule.weights is None else rule.weights[layer : layer + layers].contiguous()
    tensors = (raw.key, raw.value, raw.scores, raw.at, page_index)
    others = (weights, reference.uniform_scores(page, raw.key.device), alphas, tiers)
    steps = (reference.FEATURE_STEPS, reference.FEATURE_STEPS * reference.WEIGHT_STEPS)
    least = (reference.LEAST_ATTENTION, reference.LEAST_ENERGY, reference.LARGEST, reference.NEVER)
    args = TierArgs(
        *(None if x is None else x.data_ptr() for x in (*tensors, *others)),
        *(*steps, *least, n, rows, rule.keep_first),
        *(heads, raw.scores.shape[2] // heads, SCORES.index(rule.score), DTYPES[raw.key.dtype]),
        *(rule.least, reference.SINK_TOKENS, int(alphas.shape[1] > 1)),
    )
    launcher.launch(commit_unit(dim, page, raw.value.shape[-1]), "tier_pages", (heads, n, layers), args, raw.key.device)
    return tiers


def commit_bytes(layout: RecordLayout, query_heads: int, itemsize: int) -> int:
    """See ``reference.commit.commit_bytes``: tiers, four words a KV head, three a record, thresholds of its own."""
    heads = layout.num_kv_heads
    return heads * layout.page_size + 4 * (4 * heads + 3) + 8 * 3 * heads


def commit_pages(
    launcher: Launcher, store: RecordStore, layer: int, pages: Tensor, raw: RawPages, tiers: Tensor, rotation: str
) -> None:
    """See ``reference.commit.commit_pages``; the same bytes. Two launches, whatever the layers.

    Raises:
        ValueError: for a shape or dtype that the kernels are not written for.
    """
    n = len(pages)
    if not n:
        return
    raw = _layers_of(raw, n)
    layers, rows, page, heads, dim = raw.key.shape
    device, count = raw.key.device, layers * n
    tiers, pages = tiers.contiguous(), pages.contiguous()
    words = torch.empty(count, heads, 4, dtype=torch.int32, device=device)
    records = torch.empty(count, 3, dtype=torch.int32, device=device)
    blocks = [rotation_block(x) if rotation != "none" else 1 for x in (dim, raw.value.shape[-1])]
    ring = store.ring
    tensors = (store.blocks, store.page_table[layer], ring.ids, ring.head, ring.free_blocks, store.usage_counts)
    arrivals = scratch_of(device).zeros(1)
    args = CommitArgs(
        shape_args(store.layout),
        *(x.data_ptr() for x in (*tensors, pages, raw.at, raw.key, raw.value, tiers, words, records, arrivals)),
        *(1 / math.sqrt(block) for block in blocks),
        *(store.num_blocks, n, layers, rows, store.page_table.shape[1]),
        *(layer, DTYPES[raw.key.dtype], *blocks),
    )
    unit = commit_unit(dim, page, raw.value.shape[-1])
    launcher.launch(unit, "plan_commit", (min(-(-count * heads // PAIRS), BLOCKS), 1, 1), args, device)
    launcher.launch(unit, "pack_pages", (heads, n, layers), args, device)
