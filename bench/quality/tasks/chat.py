"""Two-turn chat (MT-bench): the exact cache's greedy answers are teacher-forced through every system.

KL and top-1 agreement over the answer tokens of both turns; the score is top-1 agreement, of which the exact cache has
1. A conversation is one sequence, read as a server would that has the first turn in its cache.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tqdm import tqdm

from bench.data import mt_bench
from bench.quality.answers import Ask, Item, raw_answers
from bench.quality.harness import Bench, Limits, Row, mean_and_error
from bench.quality.items import digest_of
from bench.quality.prompts import chat, next_turn
from bench.quality.systems import System, cache_of
from leankv_sglang.offline.compare import compare

name = "chat"
ITEMS = 24
MAX_NEW = 256
Span = tuple[int, int]


def run(bench: Bench, limits: Limits, seed: int) -> list[Row]:
    """Rows of every system; questions are spread over the categories, so ``seed`` changes nothing."""
    questions = mt_bench()
    count = min(limits.items or ITEMS, len(questions))
    turns = [questions[i * len(questions) // count] for i in range(count)]
    talks = _talks(bench, turns, limits)
    values: dict[str, list[dict[str, float]]] = {system.name: [] for system in bench.systems}
    for ids, spans in tqdm(talks, desc=f"{bench.model.name} {name}", unit="chat", disable=bench.quiet):
        for system, value in zip(bench.systems, _losses(bench, ids, spans), strict=True):
            values[system.name].append(value)
    same = {"kl": 0.0, "ppl_rel": 0.0, "top1": 1.0, "score": 1.0, "score_raw": 1.0, "spread": 0.0}
    tokens = sum(last - first for _, spans in talks for first, last in spans)
    return [
        bench.row(None, name, **same, n=tokens, items=len(talks)),
        *(_row(bench, system, values[system.name]) for system in bench.systems),
    ]


def _talks(bench: Bench, turns: list[list[str]], limits: Limits) -> list[tuple[list[int], list[Span]]]:
    """Conversations with the exact cache's answers: tokens, and where the two answers lie."""
    room = min(MAX_NEW, limits.max_new or MAX_NEW)
    prompts = [chat(bench.tokenizer, "", first)[1] for first, *_ in turns]
    firsts = raw_answers(bench, name, [Item("", [], [Ask(ids, room, None)]) for ids in prompts], limits)
    contexts = [prompt + one for prompt, (one,) in zip(prompts, firsts, strict=True)]
    links = [next_turn(bench.tokenizer, first, second) for first, second, *_ in turns]
    asked = [Item("", context, [Ask(link, room, None)]) for context, link in zip(contexts, links, strict=True)]
    seconds = raw_answers(bench, name, asked, limits)
    talks = []
    for prompt, context, link, (last,) in zip(prompts, contexts, links, seconds, strict=True):
        behind = len(context) + len(link)
        if behind > len(prompt) + len(link) or last:
            talks.append((context + link + last, [(len(prompt), len(context)), (behind, behind + len(last))]))
    return talks


def _losses(bench: Bench, ids: list[int], spans: list[Span]) -> list[dict[str, float]]:
    """Each system's sums over the answer tokens of one conversation."""
    keys = [bench.key(system, digest_of([ids, spans])) for system in bench.systems]
    found = [bench.store.get(name, key) for key in keys]
    missing = [i for i, value in enumerate(found) if value is None]
    if missing:
        targets = torch.cat([torch.arange(*span) for span in spans])
        outs = []
        for system in [None, *(bench.systems[i] for i in missing)]:
            cache = cache_of(bench.model, system, bench.page_size, 1, len(ids))
            outs.append(bench.model.prefill(cache, [(cache.new(len(ids)), ids)])[0][targets - 1])
        nll, losses = compare(bench.model, outs[0], outs[1:], torch.tensor(ids)[targets])
        for i, loss in zip(missing, losses, strict=True):
            value = {"tokens": len(targets), "kl": float(loss.kl.sum()), "top1": float(loss.top1.sum())}
            value |= {"nll": float(loss.nll.sum()), "nll_raw": float(nll.sum())}
            found[i] = value
            bench.store.put(name, keys[i], value)
    return [value for value in found if value is not None]


def _row(bench: Bench, system: System, talks: list[dict[str, Any]]) -> Row:
    tokens = sum(one["tokens"] for one in talks)
    kl, top1, nll, nll_raw = (sum(one[what] for one in talks) / tokens for what in ("kl", "top1", "nll", "nll_raw"))
    error = mean_and_error([one["kl"] / one["tokens"] for one in talks if one["tokens"]])[1]
    measured = {"kl": kl, "top1": top1, "ppl_rel": math.exp(nll - nll_raw) - 1, "score": top1, "score_raw": 1.0}
    return bench.row(system, name, **measured, spread=error, n=tokens, items=len(talks))
