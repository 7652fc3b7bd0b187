"""The pages that bench.kernels reads: stores filled as those of a server that has run for long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import bench.common.checkout  # noqa: F401
from bench.kernels.cases import PAGE, PATTERNS, ROTATION, WINDOW, Bundle, Shape, draw_tiers, layout_of, record_bytes
from bench.kernels.timing import Contestant, Setup, per_layer
from leankv_kernels import Ops, Plan, RawPages, RecordLayout, RecordStore, build_plan, get_ops
from leankv_kernels.reference.record import read_header

CHUNK = 16
"""Pages that all layers commit before the next ones come, as in prefill by chunks."""
DISTINCT = 16
"""Pages of distinct keys and values."""
CHECKED_PAGES = 16


def normal(*size: int, device: torch.device, seed: int = 0) -> Tensor:
    """Random normal numbers in bf16; large tensors repeat 4 M of them."""
    out = torch.empty(*size, dtype=torch.bfloat16, device=device)
    flat = out.view(-1)
    some = torch.randn(min(flat.numel(), 1 << 22), generator=torch.Generator().manual_seed(seed)).to(out)
    whole = flat.numel() // len(some)
    flat[: whole * len(some)].view(whole, -1).copy_(some)
    flat[whole * len(some) :].copy_(some[: flat.numel() - whole * len(some)])
    return out


def raw_pages(shape: Shape, pages: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Keys and values ``[pages, P, H, D]``."""
    size = (pages, PAGE, shape.kv_heads, shape.head_dim)
    return normal(*size, device=device, seed=1), normal(*size, device=device, seed=2)


def shuffled(batch: int, pages: int) -> Tensor:
    """Page ids ``[batch, pages]``, all of 1 to ``batch * pages`` in any order: what a long-running server's free list
    hands out.
    """
    generator = torch.Generator().manual_seed(batch * pages)
    return torch.randperm(batch * pages, generator=generator).view(batch, pages) + 1


def pages_of(bundle: Bundle) -> Tensor:
    """Page ids ``[contexts, n]`` of a bundle."""
    return shuffled(bundle.contexts, bundle.context // PAGE)


def plan_for(pages: Tensor, queries: int, device: torch.device, cascade: bool = True) -> Plan:
    """Each request of ``pages [batch, n]`` asks ``queries`` of its next page, which no record holds."""
    batch, before = pages.shape
    own = torch.cat([pages, torch.zeros(batch, 1, dtype=torch.int64)], dim=1)
    slots = (own[:, :, None] * PAGE + torch.arange(PAGE)).flatten(1).int().to(device)
    rows = torch.arange(batch, device=device)
    lengths, host = ([before * PAGE] * batch, [queries] * batch), pages.flatten().numpy()
    return build_plan(rows, *lengths, slots, PAGE, WINDOW, cascade=cascade, host_pages=host)


def sample_records(shape: Shape, layout: RecordLayout, tiers: Tensor, setup: Setup) -> tuple[Tensor, Tensor]:
    """One record per pattern of tiers, and their lengths, made by the backend's own ``commit_pages``."""
    store = RecordStore(layout, 1, len(tiers), setup.device)
    pages = torch.arange(1, len(tiers) + 1, device=setup.device)
    key, value = raw_pages(shape, DISTINCT, setup.device)
    for some, drawn in zip(pages.split(DISTINCT), tiers.to(setup.device).split(DISTINCT), strict=True):
        setup.ops.commit_pages(store, 0, some, RawPages.whole(key[: len(some)], value[: len(some)]), drawn, ROTATION)
    records = store.gather(0, pages)
    return records, read_header(records, layout).nbytes.long()


def fill(store: RecordStore, records: Tensor, lengths: Tensor) -> None:
    """Give every page of every layer a record, the samples taken in turn."""
    ids = torch.arange(1, store.num_pages + 1, device=records.device)
    for pages in ids.split(CHUNK):
        which = (pages - 1) % len(records)
        for layer in range(store.num_layers):
            store.write(layer, pages, records[which], lengths[which])


@dataclass
class Committed:
    """A batch's committed pages in as many layers as it takes to be cold."""

    shape: Shape
    store: RecordStore
    plan: Plan
    q: Tensor
    nbytes: int  # that one call has to read
    error: float  # of the op against the reference, relative, on the first pages of the first request

    def contestant(self, name: str, ops: Ops) -> Contestant:
        """A backend's op over all layers."""

        def call(layer: int) -> object:
            return ops.attend_committed(self.q, self.store, layer, self.plan, self.shape.scale, ROTATION)

        return Contestant(name, per_layer(call, self.store.num_layers))


@cache
def call_bytes(bundle: Bundle, mix: str) -> tuple[int, int]:
    """Bytes that one call over a bundle's pages reads, and bytes that a layer of them reserves."""
    layout, pages = layout_of(bundle.shape, mix), pages_of(bundle)
    far, near = record_bytes(layout, draw_tiers(bundle.shape, mix))
    which = (pages - 1) % PATTERNS
    read = far[which[:, :-WINDOW]].sum() + near[which[:, -WINDOW:]].sum()
    return int(read), pages.numel() * layout.record_bytes


def held_bytes(bundle: Bundle, setup: Setup) -> int:
    """Memory that measuring a bundle takes: all its stores and the dense keys and values."""
    stores = (setup.layers(read) * held for read, held in (call_bytes(bundle, mix) for mix in bundle.tiers))
    return sum(stores) + setup.layers(bundle.dense_bytes) * bundle.dense_bytes


def committed(bundle: Bundle, mix: str, queries: int, setup: Setup) -> Committed:
    """The pages of a bundle at a mix of tiers."""
    shape, layout = bundle.shape, layout_of(bundle.shape, mix)
    read, _ = call_bytes(bundle, mix)
    pages = pages_of(bundle)
    store = RecordStore(layout, setup.layers(read), pages.numel(), setup.device)
    if setup.scatter:
        order = torch.randperm(store.num_blocks, generator=torch.Generator().manual_seed(5)) + 1
        store.ring.ids[: store.num_blocks] = order.int().to(setup.device)
    fill(store, *sample_records(shape, layout, draw_tiers(shape, mix), setup))
    q = normal(bundle.batch * queries, shape.query_heads, shape.head_dim, device=setup.device, seed=3)
    error = error_of(store, q[:queries], plan_for(pages[:1, :CHECKED_PAGES], queries, setup.device), shape, setup)
    plan = plan_for(pages.expand(bundle.batch, -1), queries, setup.device)
    return Committed(shape, store, plan, q, read, error)


def error_of(store: RecordStore, q: Tensor, plan: Plan, shape: Shape, setup: Setup) -> float:
    """Of the op against the reference, relative, in the last layer."""
    layer = store.num_layers - 1
    ops: Sequence = (setup.ops, get_ops(setup.device, "reference"))
    own, want = (op.attend_committed(q, store, layer, plan, shape.scale, ROTATION)[0].double() for op in ops)
    return float((own - want).norm() / want.norm())
