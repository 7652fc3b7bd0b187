"""Requests that run, and those that have just finished, as the page shows them; and what finished ones add up to."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from leankv_sglang.compression.request_params import accuracy_of
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.kvcache.pool import LeanKVPool

KEPT = 50
"""Finished requests, and at most as many that run and that wait."""


@dataclass
class Totals:
    """What finished requests add up to, in tokens, since the start."""

    requests: int = 0
    prompt: int = 0
    cached_device: int = 0
    cached_host: int = 0
    cached_store: int = 0
    output: int = 0


class RequestsSeen:
    """Finished requests of this process; told of each while its row still names its pages."""

    def __init__(self) -> None:
        self.finished: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.totals = Totals()
        self._prefill_tokens = self._prefill_seconds = 0.0

    def note(self, req: Any, figures: dict[str, Any]) -> None:
        """Take note of a finished request, and of what it is told of its own KV."""
        row = request_row(req, "finished")
        row |= {
            "accuracy": accuracy_words(figures),
            "bytes": figures["bytes"],
            "ratio": figures["ratio"],
            "compressed_tokens": figures["compressed_tokens"],
            "ended": time.time(),
        }
        self.finished.append(row)
        totals = self.totals
        totals.requests += 1
        totals.prompt += row["prompt_tokens"]
        totals.cached_device += row["cached_device"]
        totals.cached_host += row["cached_host"]
        totals.cached_store += row["cached_store"]
        totals.output += row["output_tokens"]
        self._note_prefill(req, row)

    def _note_prefill(self, req: Any, row: dict[str, Any]) -> None:
        stats = req.time_stats
        seconds = stats.prefill_finished_time - stats.forward_entry_time
        if stats.forward_entry_time > 0 and seconds > 0:
            # About the last hundred prompts.
            tokens = row["prompt_tokens"] - row["cached_tokens"]
            self._prefill_tokens = 0.99 * self._prefill_tokens + tokens
            self._prefill_seconds = 0.99 * self._prefill_seconds + seconds

    @property
    def prefill_rate(self) -> float | None:
        """Tokens a second that prompts were lately computed at, whatever ran beside; None before the first."""
        return self._prefill_tokens / self._prefill_seconds if self._prefill_seconds else None


seen = RequestsSeen()
"""Of this process, which has one scheduler at most."""


def accuracy_words(described: dict[str, Any]) -> str:
    """An accuracy, as requests are told it, in a word or two."""
    if name := described.get("profile"):
        return str(name)
    return ", ".join(f"{tier} {described[key]:g}" for key, tier in _ALPHAS if key in described) or "own"


def accuracy_under(salt: str | None, config: LeanKVConfig) -> str:
    """The accuracy of a ``cache_salt``, likewise."""
    return accuracy_words(accuracy_of(salt, config).describe())


_ALPHAS = (("alpha_high", "high"), ("alpha_mid", "mid"), ("alpha_low", "low"))


def request_row(req: Any, state: str) -> dict[str, Any]:
    """What is known of a request whatever its state; ``ttft`` and ``seconds`` are None until they are."""
    stats = req.time_stats
    arrived, first = stats.wait_queue_entry_time, stats.prefill_finished_time
    return {
        "rid": str(req.rid),
        "state": state,
        "prompt_tokens": len(req.origin_input_ids),
        "output_tokens": len(req.output_ids),
        "cached_tokens": req.cached_tokens,
        "cached_device": req.cached_tokens_device,
        "cached_host": req.cached_tokens_host,
        "cached_store": req.cached_tokens_storage,
        "ttft": first - arrived if arrived > 0 and first > arrived else None,
        "seconds": time.perf_counter() - arrived if arrived > 0 else None,
    }


def running_row(req: Any, pool: LeanKVPool) -> dict[str, Any]:
    """The row of a request that runs, with what its pages take now; asks no device."""
    row = request_row(req, "decode" if len(req.output_ids) else "prefill")
    page, rows = pool.page_size, pool.page_rows
    tokens = req.owned_kv_len() // page * page if req.kv.holds_kv else 0
    nbytes = 0
    if tokens and rows is not None:
        nbytes = pool.bytes_of_pages(rows.of(req.kv.req_pool_idx, tokens // page))
    row |= {
        "accuracy": accuracy_under(req.cache_salt, pool.config),
        "bytes": nbytes,
        "ratio": pool.model_bytes(tokens) / nbytes if nbytes else None,
        "compressed_tokens": tokens,
    }
    return row


def waiting_row(req: Any, pool: LeanKVPool) -> dict[str, Any]:
    """The row of a request that waits."""
    words = accuracy_under(req.cache_salt, pool.config)
    return request_row(req, "waiting") | {"accuracy": words, "bytes": 0, "ratio": None, "compressed_tokens": 0}


def running_requests(scheduler: Any) -> list[Any]:
    """Requests that have begun and not finished, in the order in which they came."""
    batches = (scheduler.running_batch, scheduler.last_batch, scheduler.cur_batch_for_debug)
    found = {id(req): req for batch in batches if batch is not None for req in batch.reqs}
    if scheduler.chunked_req is not None:
        found[id(scheduler.chunked_req)] = scheduler.chunked_req
    alive = [req for req in found.values() if not req.finished()]
    return sorted(alive, key=lambda req: req.time_stats.wait_queue_entry_time)
