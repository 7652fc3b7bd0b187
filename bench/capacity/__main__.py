"""Tokens held at equal bytes, what is lost to padding and tables, and what managing memory costs; no server.

``python -m bench.capacity`` drives the real pool, allocator and radix tree with records encoded by the real kernels:
sequences, half of them branches of others, until the pool is long full.
"""

from __future__ import annotations

import statistics
import time
from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench.capacity.world import PAGE, CapacityWorld, Mix
from bench.common.command import Parser, run
from bench.common.table import print_table, write_json
from leankv_kernels import RecordStore, get_ops
from leankv_kernels.layout import LEVEL_FAR, TIERS, RecordLayout
from leankv_kernels.reference.record import encode
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.kvcache.commit_log import CommitLog
from leankv_sglang.kvcache.deferred import DeferredWork
from leankv_sglang.kvcache.ledger import Ledger
from leankv_sglang.kvcache.sizing import model_dtype_bytes_per_token
from leankv_sglang.models.shape import ModelShape

BATCH = 16
HISTORY = 300
FILLS = 24
"""How often the pages written would fill the memory in 16 bits."""
SMOLLM2, LLAMA3 = ModelShape(30, 9, 3, 64), ModelShape(32, 32, 8, 128)
FORMS: dict[str, tuple[LeanKVConfig, Mix]] = {
    "all k8v4": (LeanKVConfig(high="k8v4", low="k8v4"), Mix(1.0)),
    "balanced, 45% high": (LeanKVConfig(), Mix(0.45)),
    "balanced, never trimmed": (LeanKVConfig(), Mix(0.45)),
    "balanced, then demoted": (LeanKVConfig(demote=True, match="relaxed"), Mix(0.45)),
    "far low, near high": (LeanKVConfig(), Mix(0.0)),
    "far low, 30% of heads pruned": (LeanKVConfig(alpha_low=0.1), Mix(0.0, pruned_heads=0.3)),
    "all k4v2": (LeanKVConfig(high="k4v2", low="k4v2"), Mix(1.0)),
}


def churn(world: CapacityWorld, pages: int, longest: int, what: str) -> float:
    """Insert sequences, half of them branches of earlier ones, until so many pages were written; tokens held on average
    over the second half."""
    past: list[array[int]] = []
    held: list[int] = []
    with tqdm(total=pages, unit="page", desc=what) as bar:
        while world.tokens_written < pages * PAGE:
            before = world.tokens_written
            length = int(world.random.integers(2, longest))
            donor = past[int(world.random.integers(len(past)))] if past and world.random.random() < 0.5 else None
            tokens = world.new_sequence(length, donor)
            if world.insert(tokens):
                past = [*past[-HISTORY:], tokens]
            if world.tokens_written > pages * PAGE // 2:
                held.append(world.held())
            bar.update((world.tokens_written - before) // PAGE)
    return statistics.mean(held)


def held_rows(shape: ModelShape, name: str, memory: int, forms: list[str]) -> list[dict[str, Any]]:
    """Tokens held and what is not payload, for each form."""
    rows = []
    for form in forms:
        config, mix = FORMS[form]
        world = CapacityWorld(shape, memory, config, mix)
        if "never trimmed" in form:
            world.cache.paged.shrinker.step = lambda *_: 0
        raw = model_dtype_bytes_per_token(world.pool.layout, shape.layers)
        held = churn(world, FILLS * memory // (raw * PAGE), 24, f"{name}: {form}")
        if problems := world.pool.audit():
            raise RuntimeError("; ".join(problems))
        usage, store = world.pool.store.usage(), world.pool.store
        tables = store.nbytes() - store.blocks.numel()
        allocated = store.nbytes() + world.open_bytes
        in_use = usage.blocks * store.layout.block_bytes
        rows.append(
            {
                "workload": name,
                "system": form,
                "bytes": allocated,
                "tokens_held": round(held),
                "hit_rate": 1 - world.tokens_written / world.tokens_asked,
                "x_16bit": held / (allocated / raw),
                "in use": in_use / store.blocks.numel(),
                "padding": usage.padding / in_use,
                "headers": usage.header / in_use,
                "tables": tables / store.nbytes(),
                "pages trimmed": world.pool.counts.trimmed,
            }
        )
        del world
    return rows


class Life:
    """One pool of ``size`` pages, two layers of one small head, and the times of its pages' steps."""

    def __init__(self, size: int) -> None:
        layout, self.layers = RecordLayout(PAGE, 1, 16, TIERS["k8v4"], TIERS["k4v2"]), 2
        key = torch.randn(BATCH, 1, PAGE, 16, dtype=torch.float64)
        tiers = torch.randint(1, 3, (BATCH, 1, PAGE), dtype=torch.uint8)
        self.records, self.lengths = encode(key, key, tiers, layout)
        self.ledger = Ledger(size * PAGE, PAGE, self.layers * layout.max_blocks)
        self.store = RecordStore(
            layout, self.layers, self.ledger.num_pages, "cpu", size * self.layers * layout.max_blocks
        )
        self.deferred, self.commits = (
            DeferredWork(self.store, get_ops("cpu")),
            CommitLog(self.store, self.ledger, get_ops("cpu")),
        )
        self.times: dict[str, list[float]] = {}

    def timed(self, what: str, *steps: Callable[[], Any]) -> None:
        """Run steps, and note the microseconds they took a page."""
        start = time.perf_counter()
        for step in steps:
            step()
        self.times.setdefault(what, []).append((time.perf_counter() - start) / BATCH * 1e6)

    def live(self, first: int) -> None:
        """Reserve, write, true up, trim and free pages from ``first`` on."""
        ids = np.arange(first, first + BATCH)
        pages = torch.from_numpy(ids)
        self.timed("reserve", partial(self.ledger.open, ids))
        for layer in range(self.layers):
            self.store.write(layer, pages, self.records.clone(), self.lengths)
        self.timed("true up", partial(self.commits.add, pages, ids), self.commits.settle)
        trim = partial(self.deferred.cut, ids, LEVEL_FAR), partial(self.ledger.cut, ids, LEVEL_FAR)
        self.timed("trim", *trim, self.deferred.run)
        free = partial(self.deferred.free, ids), partial(self.ledger.close, ids)
        self.timed("free", *free, self.deferred.run)


def cost_rows(sizes: list[int], repeats: int) -> list[dict[str, Any]]:
    """Microseconds a page for each step of its life, in pools of different size, which take turns."""
    lives = {size: Life(size) for size in sizes}
    for i in tqdm(range(repeats), desc="costs", unit="round"):
        for life in lives.values():
            life.live(1 + (i * BATCH) % (life.ledger.num_pages - BATCH))
    rows = []
    for size, life in lives.items():
        if problems := life.store.audit() + life.ledger.audit():
            raise RuntimeError("; ".join(problems))
        times = {f"{what}, us/page": statistics.median(values) for what, values in life.times.items()}
        rows.append({"pages": size, **times})
    return rows


def command_line() -> Parser:
    """The flags."""
    parser = Parser(
        "capacity",
        __doc__,
        quick="pools of 256 MiB and of 12,000 tokens, up to 10,000 pages timed 40 times; half a minute",
        sizes={"memory": 1 << 28, "llama_tokens": 12_000, "pages": [100, 1000, 10_000], "repeats": 40},
    )
    parser.add_argument("--memory", type=int, default=1 << 30, help="bytes of the SmolLM2 pool (default: 1 GiB)")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--llama-tokens", type=int, default=100_000, help="that the Llama-3-8B pool holds, about")
    parser.add_argument("--pages", type=int, nargs="+", default=[100, 1000, 10_000, 100_000], help="of pools timed")
    parser.add_argument("--repeats", type=int, default=200, help="of a page's life, timed")
    return parser


def main() -> None:
    """Command line."""
    args = command_line().parse_args()
    rows = held_rows(SMOLLM2, "SmolLM2", args.memory, args.forms)
    # A token of Llama-3-8B takes 131,072 bytes in 16 bits; 2.6 is the ratio of the balanced form.
    llama = int(args.llama_tokens * 131072 / 2.6)
    rows += held_rows(LLAMA3, "Llama-3-8B", llama, ["balanced, 45% high"])
    print_table(rows, "Tokens held at equal bytes; shares of what is in use")
    costs = cost_rows(args.pages, args.repeats)
    print_table(costs, "Memory management, median microseconds a page, sixteen pages at a time")
    write_json(args.json, [*rows, *costs])


if __name__ == "__main__":
    run(main)
