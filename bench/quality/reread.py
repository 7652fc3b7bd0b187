"""Answers of the exact cache, read again by every system: how far each one's predictions lie from the exact ones along
them. Nothing hangs on one near tie, so it tells small losses apart where scores of answers do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from bench.quality.harness import Bench, Row, mean_and_error
from bench.quality.items import digest_of
from bench.quality.systems import System, cache_of
from leankv_sglang.offline.compare import compare

Span = tuple[int, int]
"""Where an answer lies in a sequence: its first token, and behind its last."""
Talk = tuple[list[int], list[Span]]
"""A sequence as a server would have it, and the answers in it."""


def reread(bench: Bench, task: str, talks: Sequence[Talk]) -> list[Row]:
    """A row of KL and top-1 agreement over the answer tokens for the exact cache and every system; the score is top-1
    agreement.
    """
    values: dict[str, list[dict[str, float]]] = {system.name: [] for system in bench.systems}
    for ids, spans in tqdm(talks, desc=f"{bench.model.name} {task}", unit="text", disable=bench.quiet):
        for system, value in zip(bench.systems, _losses(bench, task, ids, spans), strict=True):
            values[system.name].append(value)
    same = {"kl": 0.0, "ppl_rel": 0.0, "top1": 1.0, "score": 1.0, "score_raw": 1.0, "spread": 0.0}
    tokens = sum(last - first for _, spans in talks for first, last in spans)
    return [
        bench.row(None, task, **same, n=tokens, items=len(talks)),
        *(_row(bench, system, task, values[system.name]) for system in bench.systems),
    ]


def _losses(bench: Bench, task: str, ids: list[int], spans: list[Span]) -> list[dict[str, float]]:
    """Each system's sums over the answer tokens of one text."""
    keys = [bench.key(system, digest_of([ids, spans])) for system in bench.systems]
    found = [bench.store.get(task, key) for key in keys]
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
            bench.store.put(task, keys[i], value)
    return [value for value in found if value is not None]


def _row(bench: Bench, system: System, task: str, talks: list[dict[str, Any]]) -> Row:
    tokens = sum(one["tokens"] for one in talks)
    kl, top1, nll, nll_raw = (sum(one[what] for one in talks) / tokens for what in ("kl", "top1", "nll", "nll_raw"))
    error = mean_and_error([one["kl"] / one["tokens"] for one in talks if one["tokens"]])[1]
    measured = {"kl": kl, "top1": top1, "ppl_rel": math.exp(nll - nll_raw) - 1, "score": top1, "score_raw": 1.0}
    return bench.row(system, task, **measured, spread=error, n=tokens, items=len(talks))
