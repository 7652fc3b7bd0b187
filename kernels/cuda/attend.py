"""Attention over committed pages: what the kernel is compiled for, and how it is called."""

from __future__ import annotations

import ctypes
import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels.cuda.scratch import scratch_of
from leankv_kernels.cuda.unit import Launcher, Unit
from leankv_kernels.cuda.work import work_of
from leankv_kernels.layout import RecordLayout
from leankv_kernels.layout.format import ALIGN, KEY_PLANE, SCALE_BYTES, VALUE_PLANE, any_of
from leankv_kernels.plan import Plan
from leankv_kernels.reference.codec import rotation_block
from leankv_kernels.store import RecordStore

PAGES = (64, 128, 256)
HEAD_DIMS = (64, 80, 96, 128, 192, 256, 512)
"""Of keys and of values."""
MAX_ROWS = 16
"""Query rows of a block: heads of a group, of one query or, where tiles have several, of as many as that."""
MAX_REGISTER_ROWS = {64: 16, 80: 16, 96: 8, 128: 8, 192: 4, 256: 4, 512: 4}
"""By head_dim, the wider of keys' and values', how many rows' states a warp keeps in registers where a block takes
several queries."""
SPLIT_TOKENS = 1024
"""By absolute position; all warps of a block read one."""
MOST_BLOCKS = 4096
"""Of a launch that finds many entries empty, as in a graph: each takes several. More than a GPU runs at once."""
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class AttendShape(NamedTuple):
    """What the kernel is compiled for; see ``Shape`` in csrc/shape.cuh."""

    head_dim: int
    group: int
    queries: int  # of a block
    page_size: int
    key_base: int  # planes
    value_base: int
    key_refine: int
    value_refine: int
    block_shift: int
    near: bool
    v_head_dim: int

    @property
    def unit(self) -> Unit:
        """What is compiled for it."""
        return Unit.of("attend", self[:-1], self.v_head_dim)


@cache
def attend_shape(layout: RecordLayout, group: int, many: bool = False) -> AttendShape:
    """The shape for a layout, a query group, and tiles of one query or many.

    Raises:
        ValueError: for what the kernel is not written for; the sentence says which.
    """
    shape, widest = layout.shape, max(layout.head_dim, layout.v_head_dim)
    keys, values = (shape.key_base_bits, shape.key_refine_bits), (shape.value_base_bits, shape.value_refine_bits)
    reason = None
    if shape.page_size not in PAGES:
        reason = f"pages of {any_of(PAGES)} tokens, not {shape.page_size}"
    elif wrong := [dim for dim in (shape.head_dim, shape.v_head_dim) if dim not in HEAD_DIMS]:
        reason = f"a head_dim of {any_of(HEAD_DIMS)}, not {wrong[0]}"
    elif not 1 <= group // group_parts(widest, group) <= MAX_ROWS:
        part = MAX_REGISTER_ROWS[widest]
        reason = f"up to {MAX_ROWS} query heads per KV head, or a number with a divisor from 2 to {part}, not {group}"
    elif any(bits % KEY_PLANE for bits in keys) or any(bits % VALUE_PLANE for bits in values):
        reason = f"planes of {KEY_PLANE} bits for keys and {VALUE_PLANE} for values"
    elif sum(keys) > 2 * KEY_PLANE or sum(values) // VALUE_PLANE not in (1, 2, 4):
        reason = f"keys of 4 or 8 bits and values of 2, 4 or 8, not of {sum(keys)} and {sum(values)}"
    if reason:
        raise ValueError(f"the cuda kernels take {reason}: use the triton backend")
    planes = keys[0] // KEY_PLANE, values[0] // VALUE_PLANE, keys[1] // KEY_PLANE, values[1] // VALUE_PLANE
    group //= group_parts(widest, group)
    queries = max(1, MAX_REGISTER_ROWS[widest] // group) if many else 1
    found = AttendShape(
        *(shape.head_dim, group, queries, shape.page_size, *planes),
        *(shape.block_shift, bool(shape.near), shape.v_head_dim),
    )
    if (rows := -(-group * queries // 4) * 4) * (shape.v_head_dim + 2) * 4 > warp_bytes(found):
        raise ValueError(
            f"the cuda kernels do not take {group} query heads at a time of a v_head_dim of {shape.v_head_dim} with "
            f"pages of {shape.page_size} ({rows} rows are merged where a page was): use the triton backend"
        )
    return found


def least_shared_bytes(layout: RecordLayout) -> int:
    """Shared memory that a block of one warp takes at least: ``warp_bytes`` and ``common_of`` in csrc/shape.cuh.

    Raises:
        ValueError: for a layout that the kernel is not written for.
    """
    shape = attend_shape(layout, 1)
    return warp_bytes(shape) + common_bytes(shape.head_dim, MAX_ROWS // 4)


def warp_bytes(shape: AttendShape) -> int:
    """Of the shared memory of a block what one warp takes: keys, values and centre of a page."""
    keys = (shape.key_base + shape.key_refine) * shape.page_size * shape.head_dim * KEY_PLANE // 8
    values = (shape.value_base + shape.value_refine) * shape.page_size * shape.v_head_dim * VALUE_PLANE // 8
    near = shape.value_refine * shape.v_head_dim * shape.near
    return _lines(shape.page_size * SCALE_BYTES + keys + 3 * ALIGN) + _lines(values + near) + _lines(2 * shape.head_dim)


def common_bytes(head_dim: int, row_tiles: int) -> int:
    """Of the shared memory of a block what its warps share: the queries, four rows a tile."""
    steps = -(-head_dim // 32)
    return _lines(row_tiles * (steps * 2 * 128 + 4 * (2 * head_dim + 32) + 4 * 32) + 16 + 4 * MAX_ROWS)


def _lines(nbytes: int) -> int:
    return -(-nbytes // 128) * 128


def check_layout(layout: RecordLayout, shared_bytes: int, group: int = 1) -> None:
    """Raise ValueError, one sentence, unless the kernels take a layout and so many query heads a KV head on a GPU whose
    blocks have so much memory."""
    attend_shape(layout, group)
    attend_shape(layout, group, many=True)
    if (least := least_shared_bytes(layout)) > shared_bytes:
        raise ValueError(
            f"the cuda kernels need {least} bytes of shared memory a block for a head_dim of {layout.head_dim} and "
            f"pages of {layout.page_size}, and this GPU has {shared_bytes}: take a smaller page (--page-size) or the "
            "triton backend"
        )


def group_parts(head_dim: int, group: int) -> int:
    """In how many parts of at least two heads a query group is divided, so that their states stay in registers; 1
    where no number does it.
    """
    most = MAX_REGISTER_ROWS[head_dim]
    return next((n for n in range(1, group // 2 + 1) if group % n == 0 and group // n <= most), 1)


class AttendArgs(ctypes.Structure):
    """``AttendArgs`` in csrc/shape.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "blocks", "page_table", "pages", "tiles", "token_tile")),
        *((name, ctypes.c_void_p) for name in ("work", "queries")),
        *((name, ctypes.c_void_p) for name in ("out", "lse", "part", "state", "arrivals")),
        *((name, ctypes.c_int) for name in ("q_dtype", "tokens", "splits", "heads", "parts", "list_word")),
        ("head_word", ctypes.c_int),
        *((name, ctypes.c_int) for name in ("centre_start", "near_pages", "mid_keys_fine", "mid_values_fine")),
        *((name, ctypes.c_int) for name in ("rotation_block", "value_rotation_block")),
        *((name, ctypes.c_float) for name in ("factor", "back", "key_centre_high", "key_centre_low")),
        *((name, ctypes.c_float) for name in ("value_centre_high", "value_centre_low", "cap")),
    )


def attend_committed(
    launcher: Launcher,
    q: Tensor,
    store: RecordStore,
    layer: int,
    plan: Plan,
    scale: float,
    rotation: str,
    cap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_committed``; float32 out and LSE. One launch, or two where requests share
    pages or some decode beside the prefill of others.

    Its grid depends on what the plan knows on the host alone; scratch comes from torch's allocator, which serves a CUDA
    graph from memory of its own.

    Raises:
        ValueError: for a shape or dtype that the kernel is not written for.
    """
    if q.dtype not in DTYPES:
        raise ValueError(f"the cuda kernels take float32, bfloat16 and float16, not {q.dtype}: use another backend")
    shape, (tokens, query_heads, dim), value_dim = store.layout.shape, q.shape, store.layout.v_head_dim
    kernels = [attend_shape(store.layout, query_heads // shape.heads, together) for together in (False, True)]
    heads = query_heads // kernels[0].group
    part_bytes = 4 * query_heads * (value_dim + 2)
    lists = work_of(plan, kernels[1].queries, heads, SPLIT_TOKENS // shape.page_size, part_bytes)
    out = torch.empty(tokens, query_heads, value_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    part = torch.empty(lists.parts * part_bytes // 4, dtype=torch.float32, device=q.device)
    state = part[lists.parts * query_heads * value_dim :]
    arrivals = scratch_of(q.device).zeros(tokens * heads if lists.parts else 0)
    block, value_block = (rotation_block(x) if rotation != "none" else 1 for x in (dim, value_dim))
    q = q.contiguous()
    tensors = (q, store.blocks, store.page_table[layer], plan.pages, plan.tiles, plan.token_tile)
    for together, items, table, queries in lists.works:
        args = AttendArgs(
            *(x.data_ptr() for x in tensors),
            *(x.data_ptr() if x is not None else None for x in (table, queries, out, lse, part, state, arrivals)),
            *(DTYPES[q.dtype], tokens, items // max(tokens, 1), heads, heads // shape.heads),
            *(shape.list_word, shape.head_word),
            *(shape.centre_start, plan.near_pages, int(shape.mid_keys_fine), int(shape.mid_values_fine)),
            *(block, value_block, scale * math.log2(math.e) / math.sqrt(block), 1 / math.sqrt(value_block)),
            *(shape.key_centre_high, shape.key_centre_low, shape.value_centre_high, shape.value_centre_low),
            cap * math.log2(math.e),
        )
        unit = kernels[together].unit
        blocks = items * heads if table is not None else min(items * heads, MOST_BLOCKS)
        launcher.launch(unit, "attend_committed", (blocks, 1, 1), args, q.device)
    return out, lse
