"""What schedulers might have said, for tests of the page."""

from __future__ import annotations

from typing import Any

import numpy as np

from leankv_sglang.observability.live.messages import FIGURES, HEADS, TREE, LeanKVAsk, LeanKVPart
from leankv_sglang.observability.live.page.watch import Watch
from leankv_sglang.observability.live.tree_rows import NODE_ROW, ROOT

PAGE_COUNTS = ("committed", "trimmed", "demoted", "healed", "evicted")


def figures() -> dict[str, Any]:
    """As ``usage_figures`` gives them."""
    parts = {"high": 1000, "mid": 0, "low": 2000, "near": 4000, "header": 300, "padding": 100, "table": 50}
    return {
        "bytes": parts,
        "bytes_total": sum(parts.values()),
        "bytes_raw": 20000,
        "tokens_held": 640,
        "ratio": 20000 / sum(parts.values()),
        "units_total": 1024,
        "units_free": 512,
        "blocks_free": 10,
        "block_bytes": 512,
    }


def sample(at: float, **changed: Any) -> dict[str, Any]:
    """One of the history."""
    found: dict[str, Any] = {"time": at, "tokens_held": 640, "raw_bytes": 20000, "used": at, "output_now": 0}
    found |= {f"bytes_{part}": value for part, value in figures()["bytes"].items()}
    found |= {f"pages_{what}": 0 for what in PAGE_COUNTS}
    found |= dict.fromkeys(("requests", "prompt", "cached_device", "cached_host", "cached_store", "output"), 0)
    return {**found, "running": 1, "waiting": 2, **changed}


def request(**changed: Any) -> dict[str, Any]:
    """One of the requests."""
    places = {"cached_tokens": 64, "cached_device": 64, "cached_host": 0, "cached_store": 0}
    row = {"rid": "abc", "state": "decode", "prompt_tokens": 100, "output_tokens": 3, **places, "ttft": 0.5}
    return {**row, "seconds": 2.0, "accuracy": "own", "bytes": 1000, "ratio": 4.0, "compressed_tokens": 64, **changed}


def body(samples: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    """Of an answer with figures."""
    lists = {"running": [request()], "waiting": [], "finished": [request(state="finished", ended=samples[-1]["time"])]}
    rest = {"prefill_rate": 100.0, "open_rows": 3000, "longest_slice": 0.0004, "longest_clock": 0.0005}
    return {"figures": figures(), "samples": samples, **lists, **rest, **changed}


def node_rows(count: int = 5) -> np.ndarray:
    """A chain of nodes: whole and locked, trimmed, demoted, in host memory too, in the store too."""
    rows = np.zeros(count, NODE_ROW)
    rows["node"] = np.arange(1, count + 1)
    rows["parent"] = [ROOT, *range(1, count)]
    rows["tokens"], rows["bytes"], rows["pages"] = 64, 500, 1
    rows["digest"] = np.arange(count).astype(np.uint64) + np.uint64(0xABCDEF << 40)
    rows["locked"][0] = True
    for i, name in enumerate(("trimmed", "demoted", "host", "stored"), 1):
        if i < count:
            rows[name][i] = 1
    return rows


class Schedulers:
    """Answers questions when it is told to."""

    def __init__(self, ranks: int = 1) -> None:
        self.asked: list[LeanKVAsk] = []
        self.watch = Watch(self.asked.append, ranks)

    def say(self, ask: LeanKVAsk, rank: int, kind: str, *bodies: dict[str, Any], end: bool = True) -> None:
        """Answer a question, in parts, and end it."""
        for one in (*bodies, *([{"end": True}] if end else [])):
            self.watch.take(LeanKVPart(ask=ask.ask, rank=rank, kind=kind, body=dict(one)))

    def answer_all(
        self, samples: list[dict[str, Any]], rows: np.ndarray, text: dict[str, list[int]] | None = None
    ) -> None:
        """Ask for everything, and answer it on every rank."""
        self.asked.clear()
        self.watch.ask()
        tree: dict[str, Any] = {"rows": rows.tobytes(), "accuracy": {"1": "balanced"}}
        if text is not None:
            tree["text"] = text
        counts = np.arange(2 * 3 * 5, dtype=np.int64)
        heads = {"shape": [2, 3, 5], "counts": counts.tobytes(), "pages": 7}
        for ask in self.asked:
            for rank in range(self.watch.ranks):
                kind = FIGURES if ask.figures else TREE if ask.tree else HEADS
                self.say(ask, rank, kind, {FIGURES: body(samples), TREE: tree, HEADS: heads}[kind])
