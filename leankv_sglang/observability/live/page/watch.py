"""Asks the schedulers what the page shows, as long as somebody looks, and keeps what they said last.

All viewers of a process share one watch: however many look, the schedulers are asked once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from leankv_sglang.observability.live.messages import END, FIGURES, HEADS, TREE, LeanKVAsk, LeanKVPart
from leankv_sglang.observability.live.page.icicle import Icicle, lay_out
from leankv_sglang.observability.live.scheduler.history import KEPT_SECONDS
from leankv_sglang.observability.live.tree_rows import NODE_ROW

EVERY = {FIGURES: 1.0, TREE: 1.0, HEADS: 5.0}
"""Seconds between two questions of a kind, from the end of the answer on where that takes long."""
LOST_SECONDS = 60.0
"""After which an answer is no longer waited for."""


@dataclass
class Tree:
    """A tree as it was read: rows of ``NODE_ROW``, nodes above before those below."""

    rows: NDArray[Any]
    accuracy: dict[str, str]
    text: dict[str, list[int]]
    read_at: float
    seconds: float

    @cached_property
    def icicle(self) -> Icicle:
        """As it is drawn; worked out when it is first looked at, for all viewers."""
        return lay_out(self.rows)


@dataclass
class Heads:
    """int64 ``[layers, H, 5]``: bytes, then tokens that are high, mid, low and pruned; and of how many pages."""

    counts: NDArray[np.int64]
    pages: int
    read_at: float


@dataclass
class RankView:
    """What one scheduler said last."""

    body: dict[str, Any] = field(default_factory=dict)
    told_at: float = 0.0
    samples: deque[dict[str, Any]] = field(default_factory=deque)
    tree: Tree | None = None
    heads: Heads | None = None
    errors: dict[str, str] = field(default_factory=dict)
    version: dict[str, int] = field(default_factory=lambda: {FIGURES: 0, TREE: 0, HEADS: 0})


class Watch:
    """See the module.

    Args:
        send: sends a question to all schedulers.
        ranks: how many of them answer.
    """

    def __init__(self, send: Callable[[LeanKVAsk], None], ranks: int) -> None:
        self._send, self.ranks = send, ranks
        self.views = [RankView() for _ in range(ranks)]
        self._numbers = itertools.count(1)
        self._open: dict[str, tuple[int, float, set[int]]] = {}
        self._done: dict[str, float] = dict.fromkeys(EVERY, 0.0)
        self._parts: dict[tuple[int, int], list[dict[str, Any]]] = {}
        self._probes: dict[int, asyncio.Future[list[dict[str, Any]]]] = {}
        self._answers: dict[int, dict[int, dict[str, Any]]] = {}
        self._told = asyncio.Event()
        self._viewers = 0
        self._polling: asyncio.Task[None] | None = None

    # ---- asking ----

    @asynccontextmanager
    async def viewer(self) -> AsyncIterator[None]:
        """Have the schedulers asked every second while somebody looks."""
        self._viewers += 1
        if self._polling is None or self._polling.done():
            self._polling = asyncio.get_running_loop().create_task(self._poll())
        try:
            yield
        finally:
            self._viewers -= 1

    async def _poll(self) -> None:
        while self._viewers:
            self.ask()
            await asyncio.sleep(min(EVERY.values()))

    def ask(self) -> None:
        """Ask for everything that is due."""
        now = time.monotonic()
        for kind, every in EVERY.items():
            begun = self._open.get(kind)
            if begun is not None and now - begun[1] < LOST_SECONDS:
                continue
            if now - self._done[kind] < every * 0.9:
                continue
            number = next(self._numbers)
            self._open[kind] = number, now, set(range(self.ranks))
            asked = {one for one, *_ in self._open.values()}
            self._parts = {key: parts for key, parts in self._parts.items() if key[0] in asked}
            samples = [view.samples[-1]["time"] if view.samples else 0.0 for view in self.views]
            self._send(LeanKVAsk(ask=number, after=min(samples), **{kind: True}))

    async def fresh(self, seconds: float) -> None:
        """Ask, and wait for what comes within so many seconds: figures of all ranks, and their trees."""
        self.ask()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while FIGURES in self._open or TREE in self._open:
                    self._told.clear()
                    await self._told.wait()

    async def probe(self, tokens: bytes, extra_key: str | None, cache_salt: str | None) -> list[dict[str, Any]]:
        """What every rank answers to a probe.

        Raises:
            TimeoutError: where one does not, for as long as answers are waited for.
        """
        number = next(self._numbers)
        self._probes[number] = future = asyncio.get_running_loop().create_future()
        self._send(LeanKVAsk(ask=number, probe=tokens, extra_key=extra_key, cache_salt=cache_salt))
        try:
            return await asyncio.wait_for(future, LOST_SECONDS)
        finally:
            self._probes.pop(number, None)
            self._answers.pop(number, None)

    # ---- answers ----

    def take(self, part: LeanKVPart) -> None:
        """Take a part of an answer."""
        if part.kind == END:
            self._take_probe(part)
            return
        open_ask = self._open.get(part.kind)
        if open_ask is None or open_ask[0] != part.ask or part.rank >= self.ranks:
            return  # of a question that was given up
        key = part.ask, part.rank
        if not part.body.get("end"):
            self._parts.setdefault(key, []).append(part.body)
            return
        _, begun, missing = open_ask
        self._note(part.kind, self.views[part.rank], self._parts.pop(key, []), begun)
        missing.discard(part.rank)
        if not missing:
            del self._open[part.kind]
            self._done[part.kind] = time.monotonic()
        self._told.set()

    def _take_probe(self, part: LeanKVPart) -> None:
        future = self._probes.get(part.ask)
        if future is None or part.body.get("end"):
            return
        answers = self._answers.setdefault(part.ask, {})
        answers[part.rank] = part.body
        if len(answers) == self.ranks and not future.done():
            future.set_result([answers[rank] for rank in sorted(answers)])

    def _note(self, kind: str, view: RankView, bodies: list[dict[str, Any]], begun: float) -> None:
        view.errors.pop(kind, None)
        errors = [body["error"] for body in bodies if "error" in body]
        if errors:
            view.errors[kind] = errors[0]
        bodies = [body for body in bodies if "error" not in body]
        view.version[kind] += 1
        now = time.time()
        if kind == FIGURES and not errors:
            view.body, view.told_at = _joined(bodies), now
            last = view.samples[-1]["time"] if view.samples else 0.0
            view.samples.extend(sample for sample in view.body.pop("samples") if sample["time"] > last)
            while view.samples and now - view.samples[0]["time"] > KEPT_SECONDS:
                view.samples.popleft()
        elif kind == TREE and not errors:
            rows = [np.frombuffer(body["rows"], NODE_ROW) for body in bodies]
            joined = np.concatenate(rows) if rows else np.zeros(0, NODE_ROW)
            accuracy = {node: words for body in bodies for node, words in body["accuracy"].items()}
            text = {node: tokens for body in bodies for node, tokens in body.get("text", {}).items()}
            view.tree = Tree(joined, accuracy, text, now, time.monotonic() - begun)
        elif kind == HEADS and bodies:
            counts = np.frombuffer(bodies[-1]["counts"], np.int64).reshape(bodies[-1]["shape"])
            view.heads = Heads(counts, bodies[-1]["pages"], now)


def _joined(bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """One body of those that figures come in, in which any list may be a part."""
    joined: dict[str, Any] = {name: [] for name in ("samples", "waiting", "running", "finished")}
    for body in bodies:
        for name, value in body.items():
            joined[name] = joined[name] + value if isinstance(value, list) else value
    return joined


_watches: WeakKeyDictionary[Any, Watch] = WeakKeyDictionary()


def watch_of(manager: Any) -> Watch:
    """The watch of a tokenizer manager."""
    if manager not in _watches:
        from sglang.srt.runtime_context import get_parallel

        _watches[manager] = Watch(manager._dispatch_to_scheduler, get_parallel().num_dp_ranks)
    return _watches[manager]


def take(manager: Any, part: LeanKVPart) -> None:
    """A scheduler's answer has come."""
    watch_of(manager).take(part)
