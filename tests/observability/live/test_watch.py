"""Schedulers are asked once for all viewers, answers find their question, and what was lost is asked again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from leankv_sglang.observability.live.messages import END, FIGURES, TREE
from leankv_sglang.observability.live.page import watch as module
from tests.observability.live.views import Schedulers, body, node_rows, sample


def kinds(schedulers: Schedulers) -> list[str]:
    asked = schedulers.asked
    return [kind for ask in asked for kind in ("figures", "tree", "heads") if getattr(ask, kind)]


def test_everything_is_asked_once_and_again_only_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    schedulers = Schedulers()
    schedulers.watch.ask()
    assert kinds(schedulers) == ["figures", "tree", "heads"]
    schedulers.watch.ask()
    assert len(schedulers.asked) == 3, "no answer has come"
    for ask, kind in zip(list(schedulers.asked), kinds(schedulers), strict=True):
        schedulers.say(ask, 0, kind)
    now[0] += 1
    schedulers.watch.ask()
    assert kinds(schedulers)[3:] == ["figures", "tree"]
    now[0] += module.LOST_SECONDS
    schedulers.watch.ask()
    assert kinds(schedulers)[5:] == ["figures", "tree", "heads"], "lost answers are asked for again"


def test_parts_are_put_together_and_strangers_are_left() -> None:
    schedulers = Schedulers(ranks=2)
    schedulers.watch.ask()
    figures, tree, _ = schedulers.asked
    rows, now = node_rows(), time.time()
    schedulers.say(tree, 1, TREE, {"rows": rows[:1].tobytes(), "accuracy": {"1": "own"}}, end=False)
    schedulers.say(figures, 1, TREE, {"rows": rows[:1].tobytes(), "accuracy": {}})
    schedulers.say(tree, 1, TREE, {"rows": rows[1:].tobytes(), "accuracy": {}})
    schedulers.say(figures, 0, FIGURES, body([sample(now - 1)]))
    first, second = schedulers.watch.views
    assert (second.tree is not None, first.tree) == (True, None)
    assert second.tree is not None
    assert second.tree.rows.tolist() == rows.tolist()
    assert second.tree.accuracy == {"1": "own"}
    assert first.body["figures"]["tokens_held"] == 640
    assert [s["time"] for s in first.samples] == [now - 1]


def test_history_grows_without_repeating_itself_and_forgets() -> None:
    schedulers, now = Schedulers(), time.time()
    schedulers.watch.ask()
    ask = schedulers.asked[0]
    schedulers.say(ask, 0, FIGURES, body([sample(now - 2000), sample(now - 5)]))
    schedulers.watch._done[FIGURES] = 0.0
    schedulers.asked.clear()
    schedulers.watch.ask()
    assert schedulers.asked[0].after == now - 5
    schedulers.say(schedulers.asked[0], 0, FIGURES, body([sample(now - 5), sample(now)]))
    assert [s["time"] for s in schedulers.watch.views[0].samples] == [now - 5, now]


def test_an_error_is_kept_until_the_next_answer_and_the_last_tree_stays() -> None:
    schedulers, now = Schedulers(), time.time()
    schedulers.answer_all([sample(now)], node_rows())
    schedulers.watch._done[TREE] = 0.0
    schedulers.asked.clear()
    schedulers.watch.ask()
    schedulers.say(schedulers.asked[0], 0, TREE, {"error": "ValueError: no"})
    view = schedulers.watch.views[0]
    assert view.errors == {TREE: "ValueError: no"}
    assert view.tree is not None
    assert len(view.tree.rows) == 5


def test_a_probe_waits_for_every_rank() -> None:
    async def run() -> Any:
        schedulers = Schedulers(ranks=2)
        asked = asyncio.create_task(schedulers.watch.probe(b"", None, "s"))
        await asyncio.sleep(0)
        ask = schedulers.asked[0]
        assert (ask.probe, ask.cache_salt, ask.figures) == (b"", "s", False)
        schedulers.say(ask, 1, END, {"hit_tokens": 2})
        await asyncio.sleep(0)
        assert not asked.done()
        schedulers.say(ask, 0, END, {"hit_tokens": 1})
        return await asked

    assert asyncio.run(run()) == [{"hit_tokens": 1}, {"hit_tokens": 2}]


def test_nobody_is_asked_while_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", dict.fromkeys(module.EVERY, 0.01))

    async def run() -> Schedulers:
        schedulers = Schedulers()
        async with schedulers.watch.viewer(), schedulers.watch.viewer():
            await asyncio.sleep(0.05)
        assert kinds(schedulers) == ["figures", "tree", "heads"]
        await asyncio.sleep(0.05)
        assert schedulers.watch._polling is not None
        assert schedulers.watch._polling.done()
        return schedulers

    asyncio.run(run())


def test_a_first_look_does_not_wait_for_a_busy_scheduler() -> None:
    schedulers = Schedulers()
    begun = time.monotonic()
    asyncio.run(schedulers.watch.fresh(0.1))
    assert time.monotonic() - begun < 5
    assert len(schedulers.asked) == 3
