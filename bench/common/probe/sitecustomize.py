"""Runs at the start of every process of a server that bench.overhead starts: times memory management and forwards.

Counts go to the file that ``LEANKV_PROBE`` names, twice a second, from the process that has our pool.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

SECONDS: dict[str, float] = defaultdict(float)
MANAGED: dict[str, tuple[str, ...]] = {
    "leankv_sglang.kvcache.pool:LeanKVPool": (
        "drain",
        "settle",
        "note_commits",
        "free",
        "cut",
        "swap",
        "check_near_pages",
    ),
    "leankv_sglang.kvcache.ledger:Ledger": ("open",),
    "leankv_sglang.kvcache.allocator:LeanKVAllocator": (
        *("create_prefill_budget", "evict_to_free_tokens", "check_decode_capacity", "release", "_release_page_ids"),
    ),
    "leankv_sglang.kvcache.tree.paged_component:PagedComponent": (
        *("commit_insert_component_data", "redistribute_on_node_split", "update_component_on_insert_overlap"),
        *("acquire_component_lock", "release_component_lock", "evict_component", "legal_length"),
    ),
    "leankv_sglang.kvcache.tree.shrink:Shrinker": ("step",),
}
"""Everything that keeps books; where SGLang's own part is called within, it counts as ours."""
_depth = threading.local()


def _timed(function: Any, name: str) -> Any:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        inside, _depth.value = getattr(_depth, "value", False), True
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            if not inside:
                SECONDS["managing"] += time.perf_counter() - start
                SECONDS[name] += time.perf_counter() - start
            _depth.value = inside

    return wrapper


def _forward(function: Any) -> Any:
    def wrapper(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        before, start = SECONDS["managing"], time.perf_counter()
        try:
            return function(self, batch, *args, **kwargs)
        finally:
            kind = "decode" if batch.forward_mode.is_decode() else "prefill"
            # What managing the forward itself does is not the model's time.
            SECONDS[kind] += time.perf_counter() - start - (SECONDS["managing"] - before)
            SECONDS[f"{kind} steps"] += 1

    return wrapper


def _watch() -> None:
    backend = "leankv_sglang.attention.backend"
    while backend not in sys.modules or not hasattr(sys.modules[backend], "LeanKVBackend"):
        time.sleep(0.05)
    import importlib

    time.sleep(0.5)
    for where, names in MANAGED.items():
        module, _, owner = where.partition(":")
        cls = getattr(importlib.import_module(module), owner)
        for name in names:
            setattr(cls, name, _timed(getattr(cls, name), name))
    from sglang.srt.model_executor.model_runner import ModelRunner

    ModelRunner.forward = _forward(ModelRunner.forward)
    out = Path(os.environ["LEANKV_PROBE"])
    while True:
        time.sleep(0.5)
        fresh = out.with_suffix(".new")
        fresh.write_text(json.dumps(dict(SECONDS)))
        fresh.replace(out)


if "LEANKV_PROBE" in os.environ:
    threading.Thread(target=_watch, daemon=True).start()
