"""Every op beside the reference, on inputs drawn at random."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import bench.common.checkout  # noqa: F401
from bench.gpu.jobs import Bench, Job, drawn
from bench.gpu.shapes import LLAMA, Shape
from leankv_kernels import Plan, RawPages, RecordLayout, RecordStore, build_plan
from leankv_kernels import layout as L
from leankv_kernels.packed import PackedPages
from tests.kernels.cases import ALPHAS, MODEL_DTYPES, Case, store_with
from tests.kernels.draws import calm_rows, generator, random_tier_maps, wild_rows
from tests.kernels.driver import Method
from tests.kernels.layers import LayerShape, compare_tiers, compare_written
from tests.kernels.witness import Witness, assert_same_store, run_beside

ROTATIONS = ("hadamard", "hadamard", "none")


def queries(rng: Random, count: int, shape: Shape, device: str) -> Tensor:
    """Of any size and dtype, now and then a head of zeros."""
    q = torch.randn(count, shape.heads * shape.group, shape.head_dim, generator=generator(rng.getrandbits(32)))
    q *= rng.choice((0.1, 1.0, 2.5))
    if rng.random() < 0.1:
        q[:, :1] = 0
    return q.to(device, rng.choice(MODEL_DTYPES))


def plan_over(pages: list[list[int]], counts: list[int], shape: Shape, near_pages: int, device: str) -> Plan:
    """Requests that have these pages behind them and so many queries each in the one that follows."""
    width = (max(map(len, pages)) + 1 + max(counts) // shape.page + 1) * shape.page
    slots = torch.zeros(len(pages), width, dtype=torch.int32)
    for row, own in enumerate(pages):
        at = torch.tensor(own, dtype=torch.int32)[:, None] * shape.page + torch.arange(shape.page, dtype=torch.int32)
        slots[row, : at.numel()] = at.flatten()
    before = [len(own) * shape.page for own in pages]
    rows, host = torch.arange(len(pages), device=device), np.array([page for own in pages for page in own], np.int64)
    return build_plan(rows, before, counts, slots.to(device), shape.page, near_pages, host_pages=host)


class Pages(NamedTuple):
    """Committed pages 1, 2, ... of one layer.

    Attributes:
        bare: those that were cut or freed, which no request may read near.
    """

    store: RecordStore
    total: int
    near_pages: int
    bare: set[int]

    def some(self, rng: Random, count: int) -> list[int]:
        """So many of them in any order, as a request lists them; none where too few could be read near."""
        drawn = rng.sample(range(1, self.total + 1), count)
        near = [page for page in drawn if page not in self.bare][: self.near_pages]
        if len(near) < min(self.near_pages, count):
            return []
        return [page for page in drawn if page not in near] + near


def pages_of(shape: Shape, rng: Random, count: int, device: str) -> Pages:
    """Any tiers and values, in blocks anywhere; some are cut to any level, some have no record."""
    layout, near_pages = shape.layout(), rng.randint(0, 2) if shape.near else 0
    every = range(1, count + 1)
    level = rng.choice((L.LEVEL_BASE, L.LEVEL_FAR)) if shape.near else L.LEVEL_NEAR
    only = rng.randrange(count) if rng.random() < 0.3 else None
    if only is None and (near_pages or rng.random() < 0.5):
        level = L.LEVEL_NEAR
    gone = rng.sample(every, rng.randint(1, count)) if rng.random() < 0.2 else []
    case = Case(Method(layout, near_pages), shape.group, torch.float32, device)
    tiers, calm = random_tier_maps(rng, layout, count), rng.random() < 0.7
    store = store_with(case, tiers, level, only, calm, scatter=rng)
    store.free(torch.tensor(gone, dtype=torch.int64, device=device))
    cut = [] if level == L.LEVEL_NEAR else every if only is None else [only + 1]
    return Pages(store, count, near_pages, {*cut, *gone})


def _attend(bench: Bench, shape: Shape, rng: Random, many: bool) -> None:
    """Attention over committed pages: requests of any length over the same pages in any order."""
    sizes = bench.sizes
    pages = rng.randint(1, max(1, rng.choice(sizes.tokens) // shape.page))
    own = pages_of(shape, rng, pages, bench.device)
    requests = rng.randint(1, sizes.requests)
    lists = [own.some(rng, rng.choice((pages, rng.randint(0, pages)))) for _ in range(requests)]
    counts = _counts(rng, requests, sizes.queries if many else 1, shape.page)
    plan = plan_over(lists, counts, shape, own.near_pages, bench.device)
    q = queries(rng, plan.num_tokens, shape, bench.device)
    witness = Witness(bench.ops, bench.reference)
    witness.attend_committed(q, own.store, 0, plan, shape.head_dim**-0.5, rng.choice(ROTATIONS))


def _counts(rng: Random, requests: int, most: int, page: int) -> list[int]:
    counts = [rng.randint(1, min(most, page)) for _ in range(requests)]
    if most > 1:
        counts[0] = max(2, counts[0])
    return counts


def _own(bench: Bench, shape: Shape, rng: Random, many: bool) -> None:
    """Attention inside open pages, with whatever memory holds behind their last tokens; then a merge."""
    requests, device, page = rng.randint(1, bench.sizes.requests), bench.device, shape.page
    before = [rng.choice((0, rng.randrange(page), page - 1)) for _ in range(requests)]
    most = min(bench.sizes.queries * 2, 2 * page + 3) if many else 1
    counts = [rng.randint(1, most) for _ in range(requests)]
    slots = torch.arange(4 * page, dtype=torch.int32, device=device).repeat(requests, 1)
    plan = build_plan(torch.arange(requests, device=device), before, counts, slots, page, 1)
    dtype, g = rng.choice(MODEL_DTYPES), generator(rng.getrandbits(32))
    rooms, tiles = plan.num_tiles + 2, plan.num_tiles
    size = (rooms, page, shape.heads, shape.head_dim)
    key, value = (torch.randn(size, generator=g) + 2 * torch.arange(shape.head_dim).cos() for _ in "kv")
    scores = torch.randint(0, 1 << 22, (rooms, shape.heads * shape.group, page), generator=g, dtype=torch.int32)
    at = torch.tensor(rng.sample(range(rooms), tiles))
    garbage = rng.choice((float("nan"), float("inf"), float("-inf"), 6e4))
    for tile, behind in zip(at.tolist(), plan.unwritten.cpu(), strict=True):
        key[tile][behind], value[tile][behind] = garbage, garbage
    raw = RawPages(key.to(device, dtype), value.to(device, dtype), scores.to(device), at.to(device))
    q = queries(rng, plan.num_tokens, shape, device).to(dtype)
    witness = Witness(bench.ops, bench.reference)
    own = witness.attend_open(q, raw, plan, shape.head_dim**-0.5)
    other, lse = (torch.randn(x.shape, generator=g).to(device) * 3 for x in own)
    nothing = torch.rand(lse.shape, generator=g).to(device) < 0.3
    witness.merge_states(*own, other.masked_fill(nothing[..., None], 0.0), lse.masked_fill(nothing, float("-inf")))


def _begin_and_tier(bench: Bench, shape: Shape, rng: Random, many: bool) -> None:
    """Tokens to their pages, and the tiers of full ones."""
    layer = LayerShape(shape.page, shape.heads, shape.head_dim, shape.group, bench.device)
    compare_written(bench.ops, layer, rng)
    compare_tiers(bench.ops, bench.reference, layer, rng)


def _commit(bench: Bench, shape: Shape, rng: Random, many: bool) -> None:
    """Committing, packing, cutting, counting, freeing in any order: blocks, table, ring and usage, byte for byte."""
    layout, device, most = shape.layout(), bench.device, bench.sizes.pages
    stores = [RecordStore(layout, 2, most, device) for _ in range(2)]
    both = tuple(zip((bench.ops, bench.reference), stores, strict=True))
    held: list[set[int]] = [set(), set()]
    demoted: set[int] = set()
    for _ in range(6 if many else 3):
        layers = rng.choice((range(1), range(1, 2), range(2)))
        room = [page for page in range(1, most + 1) if not any(page in held[layer] for layer in layers)]
        if room:
            pages = rng.sample(room, rng.randint(1, len(room)))
            _commit_some(both, layout, layers, pages, rng, device)
            for layer in layers:
                held[layer].update(pages)
        some = torch.tensor(rng.sample(range(most + 1), rng.randint(1, most)), device=device)
        levels = torch.tensor([rng.randint(L.LEVEL_BASE, L.LEVEL_NEAR) for _ in some], device=device)
        counts = [ops.count_pages(store, some) for ops, store in both]
        assert torch.equal(*counts), "counts of blocks differ"
        _move(both, sorted(held[0] & held[1] - demoted), rng)
        for ops, store in both:
            ops.cut_pages(store, some, levels)
        demoted.update(some[levels == L.LEVEL_BASE].tolist())
        assert_same_store(*stores)
        gone = rng.sample(range(most + 1), rng.randint(1, most // 2 + 1))
        for ops, store in both:
            ops.free_pages(store, torch.tensor(gone, device=device))
        assert_same_store(*stores)
        held = [pages - set(gone) for pages in held]
        demoted -= set(gone)


def _move(both: tuple, pages: list[int], rng: Random) -> None:
    """Pages out of their store and into another one, the room for their bytes known beforehand or not."""
    (ops, store), (reference, spec) = both
    ids = torch.tensor(rng.sample(pages, rng.randint(0, len(pages))), dtype=torch.int64)
    level = torch.tensor([rng.choice((L.LEVEL_FAR, L.LEVEL_NEAR)) for _ in ids], dtype=torch.int64)
    device = store.blocks.device
    ids, level = ids.to(device), level.to(device)
    want = reference.pack_pages(spec, ids, level)
    room = rng.choice((None, (want.far.numel() + 4, want.near.numel() + 4)))
    packed = ops.pack_pages(store, ids, level, room)
    packed = PackedPages(*(part.to(device) for part in packed))
    packed = packed._replace(far=packed.far[: want.far.numel()], near=packed.near[: want.near.numel()])
    assert all(torch.equal(*pair) for pair in zip(packed, want, strict=True)), "packed bytes differ"
    there, other = (RecordStore(store.layout, store.num_layers, store.num_pages, device) for _ in both)
    for one in (there, other):
        one.ring.head.fill_(one.num_blocks - 1)
    names = torch.tensor(rng.sample(range(1, store.num_pages + 1), len(ids)), dtype=torch.int64, device=device)
    ops.unpack_pages(there, names, packed)
    reference.unpack_pages(other, names, want)
    assert_same_store(there, other)


def _commit_some(both: tuple, layout: RecordLayout, layers: range, pages: list[int], rng: Random, device: str) -> None:
    shape = (len(layers), len(pages) + rng.randint(0, 1), layout.page_size, layout.num_kv_heads, layout.head_dim)
    rows, dtype, rotation = rng.choice((calm_rows, wild_rows)), rng.choice(MODEL_DTYPES), rng.choice(ROTATIONS)
    key, value = (rows(shape, rng.getrandbits(32)).to(device, dtype) for _ in "kv")
    if rng.random() < 0.3:
        key[:, 0, rng.randrange(layout.page_size)] = 0
    scores = torch.zeros(*shape[:2], 0, layout.page_size, dtype=torch.int32, device=device)
    raw = RawPages(key, value, scores, torch.tensor(rng.sample(range(shape[1]), len(pages)), device=device))
    tiers = torch.stack([random_tier_maps(rng, layout, len(pages)) for _ in layers]).to(device)
    for ops, store in both:
        ops.commit_pages(store, layers[0], torch.tensor(pages, device=device), raw, tiers, rotation)
    assert_same_store(*(store for _, store in both))


def _reference_agrees(bench: Bench) -> None:
    """The reference's own bytes are the same on the GPU as on the CPU, where other backends are tested against it."""
    rng, layout = Random(bench.seed), LLAMA.layout()
    shape = (2, layout.page_size, layout.num_kv_heads, layout.head_dim)
    key, value = (wild_rows(shape, seed).to(torch.bfloat16) for seed in (1, 2))
    tiers, records = random_tier_maps(rng, layout, 2), []
    for device in ("cpu", bench.device):
        store, pages = RecordStore(layout, 1, 2, device), torch.tensor([1, 2], device=device)
        raw = RawPages.whole(key.to(device), value.to(device))
        bench.reference.commit_pages(store, 0, pages, raw, tiers.to(device), "hadamard")
        records.append(store.gather(0, pages).cpu())
    assert torch.equal(*records), "the reference writes other bytes on the GPU than on the CPU"


def _sequence(bench: Bench, shape: Shape, rng: Random, many: bool) -> None:
    """Whole sequences in chunks and single tokens, in company, through every op as a forward calls them."""
    page = shape.page
    method = Method(shape.layout(), rng.randint(1, 2) if shape.near else 0, rng.choice(ROTATIONS), *rng.choice(ALPHAS))
    case = Case(method, shape.group, rng.choice(MODEL_DTYPES), bench.device)
    lengths = [page + rng.randint(1, page), page - 1, 1] if bench.on_gpu else [page + 6, 1]
    if many and bench.on_gpu:
        lengths[0] += 9 * page  # more than a split
    run_beside(bench.ops, bench.reference, case, rng, lengths)


def attend_jobs(bench: Bench) -> Iterator[Job]:
    """Attention over committed pages."""
    return drawn(bench, "attend", partial(_attend, bench))


def own_jobs(bench: Bench) -> Iterator[Job]:
    """Attention inside open pages and the merge; what is written to them, and the tiers of full ones."""
    yield from drawn(bench, "own", partial(_own, bench))
    yield from drawn(bench, "tiers", partial(_begin_and_tier, bench))


def commit_jobs(bench: Bench) -> Iterator[Job]:
    """Records."""
    if bench.on_gpu:
        yield Job("reference", "the reference's bytes on the GPU and on the CPU", partial(_reference_agrees, bench))
    yield from drawn(bench, "commit", partial(_commit, bench))


def sequence_jobs(bench: Bench) -> Iterator[Job]:
    """Whole sequences."""
    return drawn(bench, "sequence", partial(_sequence, bench))
