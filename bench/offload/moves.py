"""How fast pages are packed, unpacked, put and got, without a server."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from bench.offload.master import has_mooncake, mooncake_master
from leankv_kernels import RawPages, RecordLayout, RecordStore, get_ops
from leankv_kernels.layout import HIGH, LEVEL_FAR, LEVEL_NEAR, LOW, PRUNED, TIERS
from leankv_sglang.models.shape import ModelShape
from leankv_sglang.offload.disk import DiskStore
from leankv_sglang.offload.mooncake import MooncakeStore, parse_address
from leankv_sglang.offload.page_object import PageName, read_object, to_objects
from leankv_sglang.offload.page_store import PageStore

PAGE = 128
SHAPES = {"SmolLM2": ModelShape(30, 9, 3, 64), "Llama-3-8B": ModelShape(32, 32, 8, 128)}
IDENTITY = bytes(16)


def filled(shape: ModelShape, pages: int) -> RecordStore:
    """A store of pages as the default point leaves them, more or less: 40% high, 35% low, 25% pruned."""
    layout = RecordLayout(PAGE, shape.kv_heads, shape.head_dim, TIERS["k8v4"], TIERS["k4v2"])
    store, ops = RecordStore(layout, shape.layers, 2 * pages, "cpu"), get_ops("cpu")
    ids = torch.arange(1, pages + 1)
    for layer in range(shape.layers):
        key, value = (torch.randn(pages, PAGE, shape.kv_heads, shape.head_dim).bfloat16() for _ in "kv")
        chance = torch.rand(pages, shape.kv_heads, PAGE)
        tiers = torch.where(chance < 0.4, HIGH, torch.where(chance < 0.75, LOW, PRUNED)).to(torch.uint8)
        ops.commit_pages(store, layer, ids, RawPages.whole(key, value), tiers, "hadamard")
    return store


def timed(rounds: int, *steps: Callable[[], Any]) -> float:
    """Median seconds of the first step; the others put back what it changed."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        steps[0]()
        found.append(time.perf_counter() - start)
        for step in steps[1:]:
            step()
    return statistics.median(found)


def move_rows(model: str, pages: int, rounds: int) -> list[dict[str, Any]]:
    """A row a step: pages and megabytes a second."""
    store, ops = filled(SHAPES[model], pages), get_ops("cpu")
    ids = torch.arange(1, pages + 1)
    level = torch.full((pages,), LEVEL_FAR)
    level[-1] = LEVEL_NEAR
    packed = ops.pack_pages(store, ids, level)
    counts = store.count_pages(ids).numpy()
    keys = [f"{int(i):064x}" for i in ids]
    nbytes = packed.far.numel() + packed.near.numel()

    def objects() -> dict[PageName, bytes]:
        return to_objects(keys, IDENTITY, counts, packed)

    made, there = objects(), ids + pages

    def read() -> None:
        for name, data in made.items():
            read_object(name, IDENTITY, store.num_layers, data)

    seconds = {
        "pack": timed(rounds, lambda: ops.pack_pages(store, ids, level)),
        "unpack": timed(rounds, lambda: ops.unpack_pages(store, there, packed), lambda: ops.free_pages(store, there)),
        "make objects, checksums too": timed(rounds, objects),
        "read objects": timed(rounds, read),
    }
    with ExitStack() as stack:
        # Host memory keeps references: nothing is moved there.
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        places: list[PageStore] = [DiskStore(folder, IDENTITY, 1 << 34)]
        if has_mooncake():
            address = parse_address(stack.enter_context(mooncake_master())[0])
            places.append(MooncakeStore(address, IDENTITY, 4 << 30))
        for place in tqdm(places, desc=model, unit="place"):
            stack.callback(place.close)
            names = list(made)
            seconds[f"put, {place.name}"] = timed(rounds, partial(place.put, made), partial(place.remove, names))
            place.put(made)
            seconds[f"get, {place.name}"] = timed(rounds, partial(place.get, names))
    return [
        {"model": model, "step": step, "pages/s": round(pages / taken), "MB/s": round(nbytes / taken / 1e6)}
        for step, taken in seconds.items()
    ]
