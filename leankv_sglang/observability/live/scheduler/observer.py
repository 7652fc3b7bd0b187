"""One scheduler's side of the page and the probe: takes questions, and answers them between steps."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

from leankv_sglang.kvcache.pool import current_pool
from leankv_sglang.kvcache.tree.radix_cache import LeanKVRadixCache
from leankv_sglang.observability.live.messages import END, FIGURES, HEADS, TREE, LeanKVAsk, LeanKVPart
from leankv_sglang.observability.live.scheduler.head_reader import read_heads
from leankv_sglang.observability.live.scheduler.history import History
from leankv_sglang.observability.live.scheduler.prober import Prober
from leankv_sglang.observability.live.scheduler.requests_seen import (
    KEPT,
    accuracy_under,
    running_requests,
    running_row,
    seen,
    waiting_row,
)
from leankv_sglang.observability.live.scheduler.slices import Slices
from leankv_sglang.observability.live.scheduler.tree_reader import TreeReader
from leankv_sglang.observability.pool_stats import usage_figures

LEAST_BETWEEN = 0.9
"""Seconds between two samples of the history, while somebody looks."""
SAMPLES_A_PIECE, ROWS_A_PIECE, WAITING_SHOWN = 16, 2, 8

logger = logging.getLogger(__name__)
Emit = Callable[[dict[str, Any]], None]


class Observer:
    """See the module.

    Args:
        scheduler: SGLang's.
    """

    def __init__(self, scheduler: Any) -> None:
        from sglang.srt.runtime_context import get_parallel

        self.scheduler, self.slices = scheduler, Slices()
        # Of tensor-parallel ranks only the one that talks to the HTTP process answers.
        self.answers = scheduler.ipc_channels.send_to_tokenizer.socket is not None
        self.rank = get_parallel().dp_rank or 0
        pool = current_pool()
        assert pool is not None
        assert isinstance(scheduler.tree_cache, LeanKVRadixCache)
        self.pool, self.cache = pool, scheduler.tree_cache
        self.history, self._sampling = History(self._sample), False

    def step(self, asked: Sequence[LeanKVAsk]) -> None:
        """Between two steps: take questions, and work on answers for a while."""
        if not self.answers:
            return
        if self.history.due() and not self._sampling:
            self._sampling = True
            self.slices.add(self._take_sample(), urgent=True)
        for ask in asked:
            for task in self._tasks(ask):
                self.slices.add(task, urgent=ask.figures or ask.probe is not None)
        if not self.slices:
            return
        try:
            self._work()
        except Exception:
            # What is shown is not worth a server.
            logger.exception("The live page could not be told something.")

    def _work(self) -> None:
        sleeper = self.scheduler.idle_sleeper
        if sleeper is not None and self.scheduler.is_fully_idle():
            # It would sleep until somebody asks something.
            self.slices.while_idle(lambda: bool(sleeper.poller.poll(0)))
        if self.slices:
            self.slices.between_steps()

    def _tasks(self, ask: LeanKVAsk) -> Iterator[Iterator[None]]:
        """What a question gives to do, each part of it followed by its end."""
        if ask.figures:
            yield self._parted(ask, FIGURES, partial(self._figures, ask.after))
        if ask.probe is not None:
            tokens = array("q")
            tokens.frombytes(ask.probe)
            yield self._parted(ask, END, partial(self._probe, tokens, ask.extra_key, ask.cache_salt))
        if ask.tree:
            yield self._parted(ask, TREE, self._tree)
        if ask.heads:
            yield self._parted(ask, HEADS, partial(read_heads, self.pool))

    def _parted(self, ask: LeanKVAsk, kind: str, work: Callable[[Emit], Iterator[None]]) -> Iterator[None]:
        def emit(body: dict[str, Any]) -> None:
            part = LeanKVPart(ask=ask.ask, rank=self.rank, kind=kind, body=body)
            self.scheduler.send_control_output(part, ask)

        try:
            yield from work(emit)
        except Exception as error:
            emit({"error": f"{type(error).__name__}: {error}"})
            raise
        finally:
            emit({"end": True})

    # ---- what is asked for ----

    def _sample(self) -> dict[str, Any]:
        """A sample of the history; asks no device."""
        from sglang.srt.mem_cache.unified_cache.components import base

        figures, totals = usage_figures(self.pool, self.pool.usage()), seen.totals
        running = running_requests(self.scheduler)
        return {
            "tokens_held": figures["tokens_held"],
            "raw_bytes": figures["bytes_raw"],
            **{f"bytes_{part}": value for part, value in figures["bytes"].items()},
            **{name: figures[name] for name in ("blocks_free", "units_free", *_PAGE_COUNTS)},
            **asdict(totals),
            "output_now": totals.output + sum(len(req.output_ids) for req in running),
            "running": len(running),
            "waiting": len(self.scheduler.waiting_queue),
            # SGLang's nodes know when they were last used by this counter.
            "used": base._LAST_ACCESS_TIME_COUNTER_FLOAT,
        }

    def _take_sample(self) -> Iterator[None]:
        self._sampling = False
        self.history.sample()
        yield

    def _figures(self, after: float, emit: Emit) -> Iterator[None]:
        if self.history.due(LEAST_BETWEEN):
            yield from self._take_sample()
        pool, scheduler = self.pool, self.scheduler
        samples = self.history.after(after)
        for at in range(0, len(samples), SAMPLES_A_PIECE):
            emit({"samples": samples[at : at + SAMPLES_A_PIECE]})
            yield
        figures = usage_figures(pool, pool.usage())
        yield
        emit(
            {
                "figures": figures,
                "prefill_rate": seen.prefill_rate,
                "open_rows": pool.open_pages.nbytes(),
                "longest_slice": self.slices.longest,
                "longest_clock": self.slices.longest_clock,
            }
        )
        yield
        waiting = [waiting_row(req, pool) for req in islice(scheduler.waiting_queue, WAITING_SHOWN)]
        emit({"waiting": waiting, "finished": list(seen.finished)})
        running = running_requests(scheduler)[:KEPT]
        for at in range(0, len(running), ROWS_A_PIECE):
            yield
            alive = [req for req in running[at : at + ROWS_A_PIECE] if not req.finished()]
            emit({"running": [running_row(req, pool) for req in alive]})

    def _tree(self, emit: Emit) -> Iterator[None]:
        cache, host, has_store = self.cache, None, False
        if cache.linker is not None:
            linker = cache.linker.cache_linker
            host, has_store = linker.has_in_host, linker.stack.store is not None
        config = self.pool.config
        words = partial(accuracy_under, config=config)
        yield from TreeReader(cache, emit, words, config.show_text, host, has_store).read()

    def _probe(self, tokens: Any, extra_key: str | None, salt: str | None, emit: Emit) -> Iterator[None]:
        yield from Prober(self.cache, tokens, extra_key, salt).answer(emit)


_PAGE_COUNTS = tuple(f"pages_{what}" for what in ("committed", "trimmed", "demoted", "healed", "evicted"))


def observe(scheduler: Any, asked: Sequence[Any]) -> None:
    """What a scheduler does about the page and the probe between two steps; where a pool was built."""
    observer = getattr(scheduler, "leankv_observer", None)
    if observer is None:
        if current_pool() is None:
            return
        observer = scheduler.leankv_observer = Observer(scheduler)
    observer.step(asked)
