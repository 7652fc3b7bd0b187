"""Attention inside raw open pages; tokens into them, and the merge of two states: how the kernels are called."""

from __future__ import annotations

import ctypes
import math
from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels.cuda.attend import DTYPES, MAX_ROWS
from leankv_kernels.cuda.unit import Launcher, Unit, check_tokens
from leankv_kernels.layout import MAX_DIM
from leankv_kernels.plan import Plan
from leankv_kernels.raw import RawPages

STATE_THREADS = 256
_REGISTER_ROWS = 8
"""Query rows of a block where tiles have several queries."""


class OpenShape(NamedTuple):
    """What the kernel is compiled for; see ``OpenShape`` in csrc/open.cuh."""

    head_dim: int
    group: int
    queries: int  # of a block
    page_size: int
    v_head_dim: int

    @property
    def unit(self) -> Unit:
        """What is compiled for it."""
        return Unit.of("open", self[:-1], self.v_head_dim)


def open_shape(head_dim: int, group: int, page_size: int, many: bool = False, v_head_dim: int = 0) -> OpenShape:
    """The shape for tiles of one query or many; values are as wide as keys unless ``v_head_dim`` is given.

    Raises:
        ValueError: for what the kernel is not written for; the sentence says which.
    """
    dims = (head_dim, v_head_dim or head_dim)
    part = group // open_parts(group, max(dims))
    wrong = [dim for dim in dims if dim % 16 or not 16 <= dim <= MAX_DIM]
    if wrong or not 1 <= part <= MAX_ROWS or page_size > 256:
        raise ValueError(
            f"the cuda kernels take a head_dim of 16 to {MAX_DIM} in steps of 16, 1 to {MAX_ROWS} query heads per KV "
            f"head or a number with a divisor from 2 to that, and pages of at most 256 tokens, not "
            f"{(wrong or dims)[0]}, {group} and {page_size}: use the triton backend"
        )
    return OpenShape(head_dim, part, max(1, _REGISTER_ROWS // part) if many else 1, page_size, dims[1])


def open_parts(group: int, widest: int) -> int:
    """In how many parts of at least two heads a query group is divided that has more heads than a block takes rows, of
    keys or values so wide; 1 where no number does it.
    """
    most = MAX_ROWS if widest <= 256 else _REGISTER_ROWS
    return next((n for n in range(1, group // 2 + 1) if group % n == 0 and group // n <= most), 1)


class OpenArgs(ctypes.Structure):
    """``OpenArgs`` in csrc/open.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "key", "value", "scores", "at", "tiles", "token_tile")),
        *((name, ctypes.c_void_p) for name in ("out", "lse")),
        *((name, ctypes.c_longlong) for name in ("key_page", "value_page")),
        *((name, ctypes.c_int) for name in ("key_token", "key_head", "value_token", "value_head")),
        *((name, ctypes.c_int) for name in ("q_dtype", "raw_dtype", "heads", "parts", "alone")),
        *((name, ctypes.c_float) for name in ("factor", "cap")),
    )


def attend_open(
    launcher: Launcher, q: Tensor, raw: RawPages, plan: Plan, scale: float, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_open``; float32 out and LSE. One launch, or two where a tile has more queries
    than a block takes.

    Raises:
        ValueError: for a shape or dtype that the kernel is not written for.
    """
    if q.dtype not in DTYPES or raw.key.dtype not in DTYPES or raw.key.dtype != raw.value.dtype:
        raise ValueError(
            "the cuda kernels take queries in float32, bfloat16 or float16, and keys and values in one of them, not "
            f"{q.dtype}, {raw.key.dtype} and {raw.value.dtype}: use another backend"
        )
    (tokens, query_heads, dim), (_, page_size, heads, value_dim) = q.shape, raw.value.shape
    check_tokens(tokens)
    shape = open_shape(dim, query_heads // heads, page_size, plan.max_queries > 1, value_dim)
    parts = open_parts(query_heads // heads, max(dim, value_dim))
    out = torch.empty(tokens, query_heads, value_dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    q = q.contiguous()
    key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (raw.key, raw.value))
    tensors = (q, key, value, raw.scores, raw.at, plan.tiles, plan.token_tile, out, lse)
    alone = plan.max_queries <= shape.queries
    args = OpenArgs(
        *(x.data_ptr() for x in tensors),
        *(key.stride(0), value.stride(0), *key.stride()[1:3], *value.stride()[1:3]),
        *(DTYPES[q.dtype], DTYPES[key.dtype], heads * parts, parts, int(alone)),
        *(scale * math.log2(math.e), cap * math.log2(math.e)),
    )
    unit = shape.unit
    if not alone:
        launcher.launch(unit, "begin_pages", (plan.num_tiles, 1, 1), args, q.device)
    launcher.launch(unit, "attend_open", (heads * parts, tokens, 1), args, q.device)
    return out, lse


class StatesArgs(ctypes.Structure):
    """``StatesArgs`` in csrc/states.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("out_a", "lse_a", "out_b", "lse_b", "out", "lse")),
        ("sinks", ctypes.c_void_p),
        ("rows", ctypes.c_longlong),
        *((name, ctypes.c_int) for name in ("dim", "heads", "out_dtype")),
    )


class WriteArgs(ctypes.Structure):
    """``WriteArgs`` in csrc/states.cuh."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("key", "value", "raw_key", "raw_value", "at", "tile", "pos")),
        *((name, ctypes.c_longlong) for name in ("key_token", "value_token", "tokens")),
        *((name, ctypes.c_int) for name in ("key_bytes", "value_bytes", "page")),
    )


def _by_token(x: Tensor) -> Tensor:
    """Tokens ``[T, H, D]`` that lie each in one piece, at multiples of 16 bytes."""
    size, (_, _, dim) = x.element_size(), x.shape
    whole = x.stride()[1:] == (dim, 1) and x.stride(0) * size % 16 == 0 and x.data_ptr() % 16 == 0
    return x if whole else x.clone(memory_format=torch.contiguous_format)


def write_tokens(launcher: Launcher, raw: RawPages, plan: Plan, key: Tensor, value: Tensor) -> None:
    """See ``RawPages.write``. One launch.

    Raises:
        ValueError: for pages that do not lie in one piece, or tokens of another dtype or odd sizes.
    """
    page, size = raw.key.shape[1], raw.key.element_size()
    nbytes = [x.shape[2] * x.shape[3] * size for x in (raw.key, raw.value)]  # of a token
    if not raw.key.is_contiguous() or not raw.value.is_contiguous() or any(n % 16 for n in nbytes):
        raise ValueError("the cuda kernels write pages [R, P, H, D] in one piece, tokens of multiples of 16 bytes")
    if {key.dtype, value.dtype, raw.value.dtype} != {raw.key.dtype}:
        raise ValueError(f"tokens in {key.dtype} and {value.dtype} do not go into pages in {raw.key.dtype}")
    key, value = _by_token(key), _by_token(value)
    tensors = (key, value, raw.key, raw.value, raw.at, plan.token_tile, plan.token_pos)
    strides = key.stride(0) * size, value.stride(0) * size
    args = WriteArgs(*(x.data_ptr() for x in tensors), *strides, len(key), *nbytes, page)
    grid = (-(-(len(key) * sum(nbytes) // 16) // STATE_THREADS), 1, 1)
    launcher.launch(Unit("states"), "write_tokens", grid, args, key.device)


def merge_states(
    launcher: Launcher,
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    dtype: torch.dtype | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.merge_states``; worked out in float32. One launch."""
    states = [x.to(torch.float32).contiguous() for x in (out_a, lse_a, out_b, lse_b)]
    inside = dtype if dtype in DTYPES else torch.float32
    out, lse = torch.empty_like(states[0], dtype=inside), torch.empty_like(states[1])
    given = None if sinks is None else sinks.to(torch.float32).contiguous()
    args = StatesArgs(
        *(x.data_ptr() if x is not None else None for x in (*states, out, lse, given)),
        *(lse.numel(), out.shape[-1], lse.shape[-1], DTYPES[inside]),
    )
    grid = (-(-out.numel() // STATE_THREADS), 1, 1)
    launcher.launch(Unit("states"), "merge_states", grid, args, out.device)
    return out if dtype is None else out.to(dtype), lse
