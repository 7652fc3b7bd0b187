"""The ops in C++ for CPUs: AVX-512 with VNNI, AVX2 or portable code, chosen at run time.

``LEANKV_CPU_ISA`` (``avx512``, ``avx2``, ``portable``) overrides the choice. Results are float32. Products of codes are
summed exactly as integers, everything else in an order fixed by positions, so a query's result does not depend on its
batch, on the chunk split or on the number of threads.

The compiled module checks what it is given: every op raises ValueError for a tensor of a dtype, a shape or a memory
layout that it does not take, and for more than 64 query heads per KV head.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import TypedDict

import torch
from torch import Tensor

from leankv_kernels.cpu.extension import _cpu
from leankv_kernels.layout import LEVEL_FAR, RecordLayout
from leankv_kernels.packed import PackedPages
from leankv_kernels.plan import Plan
from leankv_kernels.raw import RawPages
from leankv_kernels.reference.window import window_requests
from leankv_kernels.store import RecordStore

ISA_ENV = "LEANKV_CPU_ISA"

if _chosen := os.environ.get(ISA_ENV):
    _cpu.use_isa(_chosen)


def isas() -> list[str]:
    """Instruction sets that this build has and this CPU runs, best first."""
    return _cpu.isas()


def use_isa(name: str) -> None:
    """Switch to an instruction set; raises ValueError for one that is not in :func:`isas`."""
    _cpu.use_isa(name)


def isa() -> str:
    """The instruction set in use."""
    return _cpu.isa()


@lru_cache(maxsize=64)
def _shape(layout: RecordLayout) -> _cpu.RecordShape:
    return _cpu.RecordShape(**asdict(layout.shape))


def _outputs(q: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    rows = q.shape[:2]
    return torch.empty(*rows, dim, dtype=torch.float32), torch.empty(rows, dtype=torch.float32)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """See ``reference.linear.linear``; a row's bits depend on that row and the weights alone."""
    out = torch.empty(len(x), len(weight), dtype=torch.float32)
    _cpu.linear(x=x.float().contiguous(), weight=weight, out=out, threads=torch.get_num_threads())
    return out


def attend_open(q: Tensor, raw: RawPages, plan: Plan, scale: float, cap: float = 0.0) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_open``; float32 out and LSE."""
    out, lse = _outputs(q, raw.value.shape[-1])
    _cpu.attend_open(
        q=q.contiguous(),
        key=raw.key,
        value=raw.value,
        scores=raw.scores,
        at=raw.at,
        tiles=plan.tiles,
        out=out,
        lse=lse,
        scale=scale,
        cap=cap,
        threads=torch.get_num_threads(),
    )
    return out, lse


def attend_committed(
    q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str, cap: float = 0.0
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_committed``; float32 out and LSE.

    Queries and softmax weights are rounded to 16 bits, relative to the largest of a query and of a page.
    """
    out, lse = _outputs(q, store.layout.v_head_dim)
    _cpu.attend_committed(
        shape=_shape(store.layout),
        blocks=store.blocks,
        page_table=store.page_table,
        layer=layer,
        q=q.contiguous(),
        tiles=plan.tiles,
        pages=plan.pages,
        groups=plan.groups,
        members=plan.members,
        out=out,
        lse=lse,
        near_pages=plan.near_pages,
        scale=scale,
        cap=cap,
        rotated=rotation != "none",
        threads=torch.get_num_threads(),
    )
    return out, lse


def merge_states(
    out_a: Tensor,
    lse_a: Tensor,
    out_b: Tensor,
    lse_b: Tensor,
    dtype: torch.dtype | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.merge_states``; worked out in float32."""
    out_a, lse_a, out_b, lse_b = (x.to(torch.float32).contiguous() for x in (out_a, lse_a, out_b, lse_b))
    out, lse = torch.empty_like(out_a), torch.empty_like(lse_a)
    _cpu.merge_states(
        out_a=out_a,
        lse_a=lse_a,
        out_b=out_b,
        lse_b=lse_b,
        sinks=_sinks(sinks, lse.shape[1]),
        out=out,
        lse=lse,
        threads=torch.get_num_threads(),
    )
    return out if dtype is None else out.to(dtype), lse


def attend_window(
    q: Tensor,
    key: Tensor,
    value: Tensor,
    slots: Tensor,
    q_indptr: Sequence[int] | Tensor,
    kv_indptr: Sequence[int] | Tensor,
    kv_start: Sequence[int] | Tensor,
    window: int,
    scale: float,
    cap: float = 0.0,
    sinks: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """See ``reference.window.attend_window``; worked out in float32.

    Raises:
        ValueError: also for heads that are not of 16 to 512 channels in steps of 16, and for slots that are not in the
            pools.
    """
    found = window_requests(len(q), len(slots), q_indptr, kv_indptr, kv_start, window)
    rows = [(r.queries.start, r.queries.stop - r.queries.start, r.slots.start, *r[2:]) for r in found]
    out = torch.empty(*q.shape[:2], value.shape[2], dtype=dtype or q.dtype)
    _cpu.attend_window(
        q=q.contiguous(),
        key=key,
        value=value,
        slots=slots.contiguous(),
        requests=torch.tensor(rows, dtype=torch.int64).view(-1, 5),
        sinks=_sinks(sinks, q.shape[1]),
        out=out,
        window=window,
        scale=scale,
        cap=cap,
        threads=torch.get_num_threads(),
    )
    return out


def _sinks(sinks: Tensor | None, heads: int) -> Tensor:
    """What ops with sinks take: none at all are -inf."""
    return _no_sinks(heads) if sinks is None else sinks.to(torch.float32).contiguous()


@lru_cache(maxsize=64)
def _no_sinks(heads: int) -> Tensor:
    return torch.full((heads,), -torch.inf)


def commit_pages(store: RecordStore, layer: int, pages: Tensor, raw: RawPages, tiers: Tensor, rotation: str) -> None:
    """See ``reference.commit.commit_pages``; the same bytes."""
    raw = raw.by_layer()
    _cpu.commit_pages(
        **_pool(store),
        layer=layer,
        pages=pages.contiguous(),
        key=raw.key.contiguous(),
        value=raw.value.contiguous(),
        at=raw.at.contiguous(),
        tiers=tiers.reshape(len(raw.key), len(pages), *tiers.shape[-2:]).contiguous(),
        rotated=rotation != "none",
        threads=torch.get_num_threads(),
    )


def free_pages(store: RecordStore, pages: Tensor) -> None:
    """See ``RecordStore.free``; the same blocks in the same order."""
    _cpu.free_pages(**_pool(store), pages=pages)


def cut_pages(store: RecordStore, pages: Tensor, level: Tensor) -> None:
    """See ``RecordStore.cut``; the same blocks in the same order."""
    _cpu.cut_pages(**_pool(store), pages=pages, level=level)


def count_pages(store: RecordStore, pages: Tensor) -> Tensor:
    """See ``RecordStore.count_pages``."""
    counts = torch.zeros(len(pages), 6, dtype=torch.int32)
    _cpu.count_pages(**_pool(store), pages=pages.contiguous(), counts=counts)
    return counts


def count_heads(store: RecordStore, pages: Tensor) -> Tensor:
    """See ``RecordStore.count_heads``."""
    counts = torch.zeros(store.num_layers, store.layout.num_kv_heads, 5, dtype=torch.int64)
    _cpu.count_heads(**_pool(store), pages=pages.contiguous(), counts=counts)
    return counts


def pack_pages(store: RecordStore, pages: Tensor, level: Tensor, room: tuple[int, int] | None = None) -> PackedPages:
    """See ``reference.packing.pack_pages``; the same bytes."""
    pages, pool = pages.contiguous(), _pool(store)
    lengths = [torch.empty(len(pages), store.num_layers, dtype=torch.int64) for _ in range(2)]
    held = torch.full((len(pages),), LEVEL_FAR)
    named = {"far_bytes": lengths[0], "near_bytes": lengths[1], "held": held}
    _cpu.measure_packed(**pool, pages=pages, level=level.contiguous(), **named)
    far, near = (torch.empty(int(of.sum()), dtype=torch.uint8) for of in lengths)
    _cpu.pack_pages(**pool, pages=pages, far=far, near=near, **named)
    return PackedPages(far, lengths[0], near, lengths[1], held)


def unpack_pages(store: RecordStore, pages: Tensor, packed: PackedPages) -> None:
    """See ``reference.packing.unpack_pages``; the same blocks in the same order."""
    _cpu.unpack_pages(
        **_pool(store),
        pages=pages.contiguous(),
        far=packed.far.contiguous(),
        far_bytes=packed.far_bytes.contiguous(),
        near=packed.near.contiguous(),
        near_bytes=packed.near_bytes.contiguous(),
        held=packed.level.contiguous(),
    )


class _Pool(TypedDict):
    """What ops that change a store are given of it."""

    shape: _cpu.RecordShape
    blocks: Tensor
    page_table: Tensor
    ring: Tensor
    ring_head: Tensor
    ring_free: Tensor
    usage: Tensor


def _pool(store: RecordStore) -> _Pool:
    ring = store.ring
    return {
        "shape": _shape(store.layout),
        "blocks": store.blocks,
        "page_table": store.page_table,
        "ring": ring.ids,
        "ring_head": ring.head,
        "ring_free": ring.free_blocks,
        "usage": store.usage_counts,
    }
