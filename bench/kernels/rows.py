"""Rows of bench.kernels: attention over compressed pages beside dense attention, and the other ops."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch

import bench.common.checkout  # noqa: F401
from bench.kernels.cases import PAGE, ROTATION, WINDOW, Bundle, Shape, draw_tiers, layout_of, record_bytes
from bench.kernels.dense import Dense, decode_baselines, sdpa
from bench.kernels.pages import Committed, committed, normal, raw_pages
from bench.kernels.timing import Contestant, Setup, bandwidth, fastest, measure, per_layer, quartiles, row_of
from leankv_kernels import Ops, RawPages, RecordStore, build_plan
from leankv_kernels.reference.attention import merge_states

Row = dict[str, Any]
OPEN_KEYS = 64
CHUNK_PAGES = 16
"""Pages of a prefill chunk of 2,048 tokens."""


def what_of(op: str, shape: Shape, tiers: str, context: int, batch: int) -> Row:
    """What a row is about."""
    return {"op": op, "shape": shape.name, "tiers": tiers, "context": context, "batch": batch}


def attend_rows(bundles: Sequence[Bundle], queries: int, setup: Setup) -> list[Row]:
    """attend_committed of one query per request, or of a page of queries, over all bundles in the same rounds."""
    read, read_bytes = bandwidth(setup.device)
    everyone = [read]
    compared: list[tuple[Bundle, str, Committed, str, list[str], dict[str, str]]] = []
    for bundle in bundles:
        ours = {mix: committed(bundle, mix, queries, setup) for mix in bundle.tiers}
        label = f"{bundle.shape.name}, {bundle.context}, {bundle.batch}{', prefix' * bundle.prefix}"
        q = next(iter(ours.values())).q
        if queries == 1:
            baselines = decode_baselines(bundle, q, setup)
        else:
            dense = Dense.of(bundle, setup)
            by_head = q.unflatten(0, (bundle.batch, queries)).transpose(1, 2).contiguous()
            baselines = sdpa(bundle.shape, by_head, dense.keys, dense.values, setup)
        # Those of several bundles meet in one comparison.
        baselines = [replace(b, name=f"{b.name}|{label}") for b in baselines]
        for mix, pages in ours.items():
            name = f"{mix}|{label}"
            beside = {other.name: pages.contestant(f"{other.name} {name}", other) for other in setup.beside}
            beside = working(beside, setup)
            everyone += [pages.contestant(name, setup.ops), *beside.values()]
            others = {other: contestant.name for other, contestant in beside.items()}
            compared.append((bundle, mix, pages, name, [b.name for b in baselines], others))
        everyone += baselines
    seconds = measure(everyone, setup)
    rows = []
    for bundle, mix, pages, name, names, others in compared:
        op = "attend_committed" + (" extend" if queries > 1 else " prefix" if bundle.prefix else "")
        what = what_of(op, bundle.shape, mix, bundle.context, bundle.batch)
        # A page of queries is bound by arithmetic, where no ratio of bytes is a limit.
        dense_bytes = bundle.dense_bytes if queries == 1 else 0
        row = row_of(setup, what, seconds, name, names, pages.nbytes, dense_bytes, read_bytes)
        flops = 4 * queries * bundle.batch * bundle.context * bundle.shape.query_heads * bundle.shape.head_dim
        row |= {"layers": pages.store.num_layers, "error": pages.error, "gflops": flops / row["ms"] / 1e6}
        rows.append(row | _beside(seconds, name, others))
    del everyone, compared, ours, pages
    gc.collect()
    return rows


def working(contestants: dict[str, Contestant], setup: Setup) -> dict[str, Contestant]:
    """Those that do not fail, which a note says of the others."""
    return {name: contestant for name, contestant in contestants.items() if fastest([contestant], setup)}


def _beside(seconds: dict[str, list[float]], ours: str, others: dict[str, str]) -> Row:
    """Milliseconds of other backends, quartiles, and how many times ours they take, by backend."""
    if not others:
        return {}
    ratios = {
        other: median(theirs / own for theirs, own in zip(seconds[name], seconds[ours], strict=True))
        for other, name in others.items()
    }
    spread = {other: [1e3 * q for q in quartiles(seconds[name])] for other, name in others.items()}
    return {"backends_ms": spread, "backends_ratio": ratios}


def compare(
    setup: Setup,
    what: Row,
    ours: Contestant,
    baselines: list[Contestant],
    nbytes: int,
    others: dict[str, Contestant] | None = None,
) -> list[Row]:
    """One row: ours beside baselines and beside other backends, by their names."""
    others = working(others or {}, setup)
    read, read_bytes = bandwidth(setup.device)
    seconds = measure([read, ours, *baselines, *others.values()], setup)
    names = [b.name for b in baselines]
    row = row_of(setup, what, seconds, ours.name, names, nbytes, 0, read_bytes)
    beside = _beside(seconds, ours.name, {name: other.name for name, other in others.items()})
    return [row | {"layers": len(ours.calls)} | beside]


def open_rows(shape: Shape, queries: int, batch: int, setup: Setup) -> list[Row]:
    """attend_open: one query per request in the middle of its page, or whole pages, beside SDPA without scores."""
    device, whole = setup.device, queries == PAGE
    keys = PAGE if whole else OPEN_KEYS
    # Keys and values are read, column scores read and written.
    nbytes = batch * (shape.dense_bytes(keys) + 2 * 4 * shape.query_heads * keys)
    layers = setup.layers(nbytes)
    plan = build_plan(
        torch.arange(batch, device=device),
        [keys - queries] * batch,
        [queries] * batch,
        torch.arange(PAGE, dtype=torch.int32, device=device).repeat(batch, 1),
        PAGE,
        WINDOW,
    )
    size = (layers, batch, PAGE, shape.kv_heads, shape.head_dim)
    key, value = normal(*size, device=device, seed=1), normal(*size, device=device, seed=2)
    scores = torch.zeros(layers, batch, shape.query_heads, PAGE, dtype=torch.int32, device=device)
    q = normal(batch * queries, shape.query_heads, shape.head_dim, device=device, seed=3)
    raw = [RawPages(key[n], value[n], scores[n], plan.tile_range) for n in range(layers)]
    ours = Contestant("ours", per_layer(lambda n: setup.ops.attend_open(q, raw[n], plan, shape.scale), layers))
    by_head = q.unflatten(0, (batch, queries)).transpose(1, 2).contiguous()
    k, v = (x[:, :, :keys].transpose(2, 3) for x in (key, value))
    op = "attend_open extend" if whole else "attend_open"
    what = what_of(op, shape, "bf16", keys, batch)
    return compare(setup, what, ours, sdpa(shape, by_head, k, v, setup, causal=whole), nbytes)


def commit_rows(shape: Shape, mix: str, setup: Setup) -> list[Row]:
    """commit_pages of a chunk of pages per layer, beside storing the same keys and values as they are."""
    device, layout = setup.device, layout_of(shape, mix)
    tiers = draw_tiers(shape, mix)[:CHUNK_PAGES]
    raw_bytes = shape.dense_bytes(CHUNK_PAGES * PAGE)
    nbytes = raw_bytes + int(record_bytes(layout, tiers)[1].sum())
    layers = setup.layers(nbytes)
    tiers = tiers.to(device)
    store = RecordStore(layout, layers, CHUNK_PAGES, device)
    pages = torch.arange(1, CHUNK_PAGES + 1, device=device)
    key, value = (x.unflatten(0, (layers, -1)) for x in raw_pages(shape, layers * CHUNK_PAGES, device))
    pool_key, pool_value = torch.zeros_like(key), torch.zeros_like(value)

    def commit(ops: Ops, layer: int) -> None:
        ops.commit_pages(store, layer, pages, RawPages.whole(key[layer], value[layer]), tiers, ROTATION)

    def contestant(name: str, ops: Ops) -> Contestant:
        return Contestant(name, per_layer(partial(commit, ops), layers), reset=store.clear)

    def copy(layer: int) -> None:
        pool_key[layer].index_copy_(0, pages - 1, key[layer])
        pool_value[layer].index_copy_(0, pages - 1, value[layer])

    others = {other.name: contestant(other.name, other) for other in setup.beside}
    raw_copy = Contestant("raw copy", per_layer(copy, layers))
    what = what_of("commit_pages", shape, mix, CHUNK_PAGES * PAGE, 1)
    return compare(setup, what, contestant("ours", setup.ops), [raw_copy], nbytes, others)


def merge_rows(shape: Shape, tokens: int, setup: Setup) -> list[Row]:
    """merge_states, beside the same in torch, eager and in float32."""
    heads, dim = shape.query_heads, shape.head_dim
    nbytes = 4 * 3 * tokens * heads * (dim + 1)
    layers = setup.layers(nbytes)
    out = torch.randn(layers, 2, tokens, heads, dim, device=setup.device)
    lse = torch.randn(layers, 2, tokens, heads, device=setup.device)
    states = [(out[n, 0], lse[n, 0], out[n, 1], lse[n, 1]) for n in range(layers)]
    ours = Contestant("ours", per_layer(lambda n: setup.ops.merge_states(*states[n]), layers))
    eager = Contestant("torch eager", per_layer(lambda n: merge_states(*states[n]), layers))
    return compare(setup, what_of("merge_states", shape, "float32", tokens, 1), ours, [eager], nbytes)
