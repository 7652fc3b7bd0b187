"""Tasks whose items are answered and checked: done for every system, kept, and turned into rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from tqdm import tqdm

from bench.quality.decoding import Job, Question, answer
from bench.quality.harness import Bench, Limits, Row, mean_and_error
from bench.quality.items import digest_of
from bench.quality.systems import RAW, System, cache_of

LONG = 1024
"""Tokens from which on a context's own bytes say something: the open page is most of a shorter one."""


class Ask(NamedTuple):
    """One question and what its answer is checked against; its answer is drawn by the seed, or greedy without one."""

    ids: list[int]
    max_new: int
    truth: Any
    kind: str = ""
    seed: int | None = None


class Item(NamedTuple):
    """A context, compressed before any of its questions is known, and the questions."""

    group: str
    context: list[int]
    asks: list[Ask]


Score = Callable[[Ask, str], float]
"""Score of an answer's text, 0 to 1."""


def run_answers(
    bench: Bench,
    task: str,
    items: Sequence[Item],
    limits: Limits,
    score: Score,
    prepare: Callable[[Sequence[tuple[Ask, str]]], object] = lambda pairs: None,
) -> list[Row]:
    """Answer what is not answered yet, for the exact cache and every system; rows for all items, and for each group
    and kind where there are several.

    Args:
        score: of one answer.
        prepare: told of all answers of a system before they are scored one by one.
    """
    items = [_capped(item, limits) for item in items]
    values = {system: _answered(bench, system, task, items, limits) for system in bench.every}
    for system in bench.every:
        prepare([pair for item, value in zip(items, values[system], strict=True) for pair in _pairs(item, value)])
    scores = {system: _scores(items, values[system], score) for system in bench.every}
    parts: list[tuple[str, Callable[[Item, Ask], bool]]] = [(task, lambda item, ask: True)]
    for names, chosen in (
        (dict.fromkeys(item.group for item in items), lambda name, item, ask: item.group == name),
        (dict.fromkeys(ask.kind for item in items for ask in item.asks), lambda name, item, ask: ask.kind == name),
    ):
        if len(names) > 1:
            parts += [(f"{task} {name}", partial(chosen, name)) for name in names]
    rows = []
    for name, wanted in parts:
        for system in bench.every:
            rows.append(_row(bench, system, name, items, wanted, values, scores))
    return rows


def raw_answers(bench: Bench, task: str, items: Sequence[Item], limits: Limits) -> list[list[list[int]]]:
    """The exact cache's answers, tokens per item and question."""
    items = [_capped(item, limits) for item in items]
    return [value["tokens"] for value in _answered(bench, None, task, items, limits)]


def _capped(item: Item, limits: Limits) -> Item:
    if limits.max_new is None:
        return item
    return item._replace(asks=[ask._replace(max_new=min(ask.max_new, limits.max_new)) for ask in item.asks])


def _answered(
    bench: Bench, system: System | None, task: str, items: Sequence[Item], limits: Limits
) -> list[dict[str, Any]]:
    keys = [bench.key(system, digest_of(_content(item, limits))) for item in items]
    found = [bench.store.get(task, key) for key in keys]
    missing = [i for i, value in enumerate(found) if value is None]
    jobs = [Job(items[i].context, [Question(ask.ids, ask.max_new, ask.seed) for ask in items[i].asks]) for i in missing]
    label = f"{bench.model.name} {task} {RAW if system is None else system.name}"
    with tqdm(total=len(items), initial=len(items) - len(missing), desc=label, unit="item", disable=bench.quiet) as bar:
        seen = 0

        def progress(count: int) -> None:
            nonlocal seen
            seen += count
            bar.set_postfix(tokens=seen, refresh=False)

        open_cache = partial(cache_of, bench.model, system, bench.page_size)
        work = (jobs, limits.batch, limits.tokens, progress, limits.temperature)
        for done in answer(bench.model, open_cache, *work):
            at, job = missing[done.job], jobs[done.job]
            texts = [bench.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in done.tokens]
            value = {"tokens": done.tokens, "texts": texts, "bytes": done.context_bytes, "context": len(job.context)}
            found[at] = value
            bench.store.put(task, keys[at], value)
            bar.update()
    return [value for value in found if value is not None]


def _content(item: Item, limits: Limits) -> list[Any]:
    """What decides an item's answers."""
    drawn = [[ask.seed, limits.temperature] for ask in item.asks if ask.seed is not None]
    return [item.context, [ask[:2] for ask in item.asks], *drawn]


def _scores(items: Sequence[Item], values: Sequence[dict[str, Any]], score: Score) -> list[list[float]]:
    return [[score(*pair) for pair in _pairs(item, value)] for item, value in zip(items, values, strict=True)]


def _pairs(item: Item, value: dict[str, Any]) -> list[tuple[Ask, str]]:
    return list(zip(item.asks, value["texts"], strict=True))


def _row(
    bench: Bench,
    system: System | None,
    task: str,
    items: Sequence[Item],
    wanted: Callable[[Item, Ask], bool],
    values: dict[System | None, list[dict[str, Any]]],
    scores: dict[System | None, list[list[float]]],
) -> Row:
    mine, raw, change = [], [], []
    same = asked = written = held = plain = lost = won = 0
    for i, item in enumerate(items):
        chosen = [j for j, ask in enumerate(item.asks) if wanted(item, ask)]
        if not chosen:
            continue
        own, full = values[system][i], values[None][i]
        # A context's questions share what was lost: the error is taken over contexts.
        mine.append(sum(scores[system][i][j] for j in chosen) / len(chosen))
        raw.append(sum(scores[None][i][j] for j in chosen) / len(chosen))
        change.append(mine[-1] - raw[-1])
        asked += len(chosen)
        lost += sum(scores[system][i][j] < scores[None][i][j] for j in chosen)
        won += sum(scores[system][i][j] > scores[None][i][j] for j in chosen)
        same += sum(own["tokens"][j] == full["tokens"][j] for j in chosen)
        written += sum(len(own["tokens"][j]) for j in chosen)
        if own["context"] >= LONG:
            held, plain = held + own["bytes"], plain + own["context"] * bench.model.shape.token_bytes
    mean, error = mean_and_error(mine)
    return bench.row(
        system,
        task,
        score=mean,
        score_raw=mean_and_error(raw)[0],
        spread=error,
        spread_diff=mean_and_error(change)[1],
        lost=lost,
        won=won,
        same_answers=same / asked,
        tokens_out=written / asked,
        ratio_context=plain / held if held else None,
        n=asked,
        items=len(mine),
    )
