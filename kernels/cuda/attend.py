"""Attention over committed pages: shapes as template arguments, arguments, the merge of splits."""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels.cuda.unit import Launcher, Unit
from leankv_kernels.layout import RecordLayout
from leankv_kernels.layout.format import KEY_PLANE, VALUE_PLANE
from leankv_kernels.layout.shape import RecordShape
from leankv_kernels.plan import Plan
from leankv_kernels.reference.codec import rotate, rotation_block
from leankv_kernels.store import RecordStore

PAGE = 128
SPLIT_PAGES = 8
"""Pages of a split, 1,024 tokens by absolute page number; all warps of a block read one."""
HEAD_DIMS = (64, 96, 128, 256)
MAX_GROUP = 8
BLOCK_SHIFTS = (9, 10, 11)
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class KernelShape(NamedTuple):
    """What a kernel is compiled for; see ``Shape`` in csrc/shape.cuh."""

    head_dim: int
    group: int
    key_base: int
    value_base: int
    key_refine: int
    value_refine: int
    block_shift: int
    near: bool


def kernel_shape(layout: RecordLayout, group: int) -> KernelShape:
    """The shape for a layout and a query group.

    Raises:
        ValueError: for what the kernels are not written for; the sentence says which.
    """
    shape = RecordShape.of(layout)
    keys, values = (shape.key_base_bits, shape.key_refine_bits), (shape.value_base_bits, shape.value_refine_bits)
    reason = None
    if shape.page_size != PAGE:
        reason = f"pages of {PAGE} tokens, not {shape.page_size}"
    elif shape.head_dim not in HEAD_DIMS:
        reason = f"a head_dim of {', '.join(map(str, HEAD_DIMS))}, not {shape.head_dim}"
    elif not 1 <= group <= MAX_GROUP:
        reason = f"1 to {MAX_GROUP} query heads per KV head, not {group}"
    elif sum(values) > 2 * VALUE_PLANE:
        reason = "values of at most 4 bits"
    elif any(bits % KEY_PLANE for bits in keys) or any(bits % VALUE_PLANE for bits in values):
        reason = f"planes of {KEY_PLANE} bits for keys and {VALUE_PLANE} for values"
    elif shape.block_shift not in BLOCK_SHIFTS:
        reason = f"blocks of 512 to 2,048 bytes, not {shape.block_bytes}"
    if reason:
        raise ValueError(f"the cuda kernels take {reason}: use the triton backend")
    planes = keys[0] // KEY_PLANE, values[0] // VALUE_PLANE, keys[1] // KEY_PLANE, values[1] // VALUE_PLANE
    return KernelShape(shape.head_dim, group, *planes, shape.block_shift, bool(shape.near))


class AttendArgs(ctypes.Structure):
    """``AttendArgs`` in csrc/shape.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "blocks", "page_table", "pages", "tiles", "token_tile")),
        *((name, ctypes.c_void_p) for name in ("out", "state")),
        *((name, ctypes.c_int) for name in ("q_dtype", "splits", "heads", "list_word", "head_word", "centre_start")),
        *((name, ctypes.c_int) for name in ("near_pages", "mid_keys_fine", "mid_values_fine", "rotation_block")),
        ("factor", ctypes.c_float),
        *((name, ctypes.c_float) for name in ("key_centre_high", "key_centre_low")),
        *((name, ctypes.c_float) for name in ("value_centre_high", "value_centre_low")),
    )


class Partial(NamedTuple):
    """One state a query head and split."""

    out: Tensor  # float32 [T, Hq, splits, D], rotated, not normalized
    state: Tensor  # float32 [T, Hq, splits, 2]: the largest score, base 2, and the sum of weights


def partial_of(q: Tensor, plan: Plan) -> Partial:
    """Room for the states of a forward, all of them empty."""
    splits = max(1, -(-max(plan.page_index, default=0) // SPLIT_PAGES))
    out = torch.zeros(*q.shape[:2], splits, q.shape[2], dtype=torch.float32, device=q.device)
    state = torch.zeros(*q.shape[:2], splits, 2, dtype=torch.float32, device=q.device)
    state[..., 0] = -math.inf
    return Partial(out, state)


def attend_args(
    q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str, partial: Partial
) -> AttendArgs:
    """Arguments of one call; every tensor must live until it has ended.

    Raises:
        ValueError: for a dtype of queries that the kernels do not take.
    """
    if q.dtype not in DTYPES:
        raise ValueError(f"the cuda kernels take float32, bfloat16 and float16, not {q.dtype}: use another backend")
    shape = RecordShape.of(store.layout)
    block = rotation_block(shape.head_dim) if rotation != "none" else 1
    tensors = (q, store.blocks, store.page_table[layer], plan.pages, plan.tiles, plan.token_tile, *partial)
    return AttendArgs(
        *(x.data_ptr() for x in tensors),
        *(DTYPES[q.dtype], partial.out.shape[2], shape.heads, shape.list_word, shape.head_word, shape.centre_start),
        *(plan.near_pages, int(shape.mid_keys_fine), int(shape.mid_values_fine), block),
        scale * math.log2(math.e) / math.sqrt(block),
        *(shape.key_centre_high, shape.key_centre_low, shape.value_centre_high, shape.value_centre_low),
    )


def merged(partial: Partial, rotation: str) -> tuple[Tensor, Tensor]:
    """Out, rotated back, and LSE of all splits, float32; zeros and -inf where nothing was read."""
    peak, total = partial.state.unbind(-1)
    top = peak.amax(-1, keepdim=True)
    weight = torch.exp2(peak - top.clamp(min=torch.finfo(torch.float32).min))
    whole = (weight * total).sum(-1)
    out = (partial.out * weight[..., None]).sum(2) / whole.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
    lse = (top[..., 0] + whole.log2()) * math.log(2)
    return rotate(out, rotation).to(torch.float32), lse


def attend_committed(
    launcher: Launcher, q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_committed``; float32 out and LSE.

    Raises:
        ValueError: for a shape or dtype that the kernels are not written for.
    """
    q = q.contiguous()
    heads = store.layout.num_kv_heads
    unit = Unit("attend", kernel_shape(store.layout, q.shape[1] // heads))
    partial = partial_of(q, plan)
    args = attend_args(q, store, layer, plan, scale, rotation, partial)
    launcher.launch(unit, "attend_committed", (args.splits, heads, len(q)), args, q.device)
    return merged(partial, rotation)
