"""The ops in C++ for CPUs: AVX-512 with VNNI, AVX2 or portable code, chosen at run time.

``LEANKV_CPU_ISA`` (``avx512``, ``avx2``, ``portable``) overrides the choice. Results are float32. Products of codes are
summed exactly as integers, everything else in an order fixed by positions, so a query's result does not depend on its
batch, on the chunk split or on the number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from leankv_kernels.cpu.extension import _cpu
from leankv_kernels.layout import RecordLayout
from leankv_kernels.plan import Plan
from leankv_kernels.raw import RawPages
from leankv_kernels.reference.codec import MASTER_BITS, bin_centre
from leankv_kernels.store import RecordStore

ISA_ENV = "LEANKV_CPU_ISA"
MAX_GROUP = 64
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

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
def _shape(layout: RecordLayout) -> Tensor:
    """The layout in numbers, in the order of ``RecordShape`` in csrc/kernels.h."""
    planes = layout.planes
    fields: list[float] = [
        *(layout.page_size, layout.num_kv_heads, layout.head_dim),
        *(planes.key_base, planes.value_base, planes.key_refine, planes.value_refine),
        *(layout.near, layout.mid_keys_fine, layout.mid_values_fine),
        *(layout.block_bytes, layout.block_bytes.bit_length() - 1, layout.max_blocks, layout.header_bytes),
        *(layout.list_word, layout.head_word, layout.tier_map_start, layout.centre_start),
    ]
    for high, low in ((layout.high.key_bits, layout.low.key_bits), (layout.high.value_bits, layout.low.value_bits)):
        fields += [1 << (MASTER_BITS - high), bin_centre(high)[1], bin_centre(low)[1]]
    return torch.tensor(fields, dtype=torch.float64)


def _dtype(x: Tensor) -> int:
    if x.dtype not in _DTYPES:
        raise ValueError(f"the cpu kernels take float32, bfloat16 and float16, not {x.dtype}: use another backend")
    return _DTYPES[x.dtype]


def _check(**tensors: Tensor) -> None:
    for name, x in tensors.items():
        if x.device.type != "cpu" or not x.is_contiguous():
            raise ValueError(f"the cpu kernels want {name} contiguous in main memory")


def _outputs(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(q.shape, dtype=torch.float32), torch.empty(q.shape[:2], dtype=torch.float32)


def attend_open(q: Tensor, raw: RawPages, plan: Plan, scale: float) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_open``; float32 out and LSE.

    Raises:
        ValueError: for a dtype or a memory layout the kernels do not take, or more than 64 query heads per KV head.
    """
    q = q.contiguous()
    _check(key=raw.key, value=raw.value, scores=raw.scores, at=raw.at, tiles=plan.tiles)
    heads, dim = raw.key.shape[2], q.shape[2]
    if q.shape[1] > MAX_GROUP * heads:
        raise ValueError(f"the cpu kernels take at most {MAX_GROUP} query heads per KV head, not {q.shape[1] // heads}")
    out, lse = _outputs(q)
    _cpu.attend_open(
        *(x.data_ptr() for x in (q, raw.key, raw.value, raw.scores, raw.at, plan.tiles, out, lse)),
        *(plan.num_tiles, q.shape[1], heads, dim, plan.page_size),
        *(scale, _dtype(q), _dtype(raw.key), torch.get_num_threads()),
    )
    return out, lse


def attend_committed(
    q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str
) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.attend_committed``; float32 out and LSE.

    Queries and softmax weights are rounded to 16 bits, relative to the largest of a query and of a page.
    """
    q = q.contiguous()
    _check(blocks=store.blocks, tiles=plan.tiles, pages=plan.pages, groups=plan.groups, members=plan.members)
    out, lse = _outputs(q)
    table = store.page_table[layer]
    records, shared = (_shape(store.layout), store.blocks, table), (plan.groups, plan.members)
    _cpu.attend_committed(
        *(x.data_ptr() for x in (*records, q, plan.tiles, plan.pages, *shared, out, lse)),
        *(plan.num_tiles, len(plan.groups), q.shape[1], plan.near_pages),
        *(scale, rotation != "none", _dtype(q), torch.get_num_threads()),
    )
    return out, lse


def _shrink(store: RecordStore, kernel: Callable[..., None], pages: Tensor, level: Tensor, counts: Tensor) -> None:
    _check(blocks=store.blocks, table=store.page_table, ring=store.ring.ids, pages=pages, level=level)
    ring = store.ring
    tensors = (_shape(store.layout), store.blocks, store.page_table, ring.ids, ring.head, ring.free_blocks)
    kernel(
        *(x.data_ptr() for x in (*tensors, store.usage_counts, pages, level, counts)),
        *(store.num_blocks, len(pages), store.num_layers, store.page_table.shape[1]),
    )


def free_pages(store: RecordStore, pages: Tensor) -> None:
    """See ``RecordStore.free``; the same blocks in the same order."""
    _shrink(store, _cpu.free_pages, pages, pages, pages)


def cut_pages(store: RecordStore, pages: Tensor, level: Tensor) -> None:
    """See ``RecordStore.cut``; the same blocks in the same order."""
    _shrink(store, _cpu.cut_pages, pages, level, pages)


def count_blocks(store: RecordStore, pages: Tensor) -> Tensor:
    """See ``RecordStore.level_blocks``."""
    counts = torch.zeros(len(pages), 3, dtype=torch.int32)
    _shrink(store, _cpu.count_blocks, pages.contiguous(), pages, counts)
    return counts


def merge_states(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """See ``reference.attention.merge_states``; float32."""
    states = [x.to(torch.float32).contiguous() for x in (out_a, lse_a, out_b, lse_b)]
    out, lse = torch.empty_like(states[0]), torch.empty_like(states[1])
    _cpu.merge_states(*(x.data_ptr() for x in (*states, out, lse)), lse.numel(), out.shape[-1], torch.get_num_threads())
    return out, lse


def commit_pages(
    store: RecordStore, layer: int, pages: Tensor, key: Tensor, value: Tensor, tiers: Tensor, rotation: str
) -> None:
    """See ``reference.commit.commit_pages``; the same bytes."""
    key, value, tiers, pages = (x.contiguous() for x in (key, value, tiers, pages))
    _check(blocks=store.blocks, ring=store.ring.ids)
    ring = store.ring
    tensors = (_shape(store.layout), store.blocks, store.page_table[layer], ring.ids, ring.head, ring.free_blocks)
    _cpu.commit_pages(
        *(x.data_ptr() for x in (*tensors, store.usage_counts)),
        ring.num_blocks,
        *(x.data_ptr() for x in (pages, key, value, tiers)),
        *(len(pages), layer, rotation != "none", _dtype(key), torch.get_num_threads()),
    )
