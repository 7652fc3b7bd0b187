"""Windows of running text: KL, top-1 agreement and perplexity against the exact cache, per token.

Scored from token 512 on, and once more (``_tail``) over the last 512 tokens of each window, which is what systems can
be compared on that compress a prompt once and then answer.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.quality.harness import CONTEXT, Bench, Limits, Row, mean_and_error
from bench.quality.items import digest_of
from bench.quality.systems import System, cache_of
from leankv_sglang.offline.compare import Loss, compare

name = "text"
SKIP = 512
TAIL = 512
BLOCK = 256
"""Tokens of a block, the unit of the error where windows are few."""
MIN_WINDOWS = 5


def run(bench: Bench, limits: Limits, seed: int) -> list[Row]:
    """Rows of every system; see the module. Windows are the text's first ones, so ``seed`` changes nothing."""
    count = min(limits.windows, bench.window_count(limits.length))
    if not count:
        raise ValueError(f"the text has no window of {limits.length} tokens; choose a smaller --length")
    values: dict[str, list[dict[str, Any]]] = {system.name: [] for system in bench.systems}
    for index in tqdm(range(count), desc=f"{bench.model.name} {name}", unit="window", disable=bench.quiet):
        for system, value in zip(bench.systems, _window(bench, index, limits.length), strict=True):
            values[system.name].append(value)
    cut = [digest_of(bench.window(index, limits.length)) for index in range(count)]
    rows = [{**_row(bench, system, values[system.name], limits), "windows": cut} for system in bench.systems]
    if rows:
        same = {"kl": 0.0, "top1": 1.0, "ppl_rel": 0.0}
        measured = {**same, **{f"{k}_tail": v for k, v in same.items()}, "ppl": rows[0]["ppl_raw"], "spread": 0.0}
        rows.insert(0, bench.row(None, name, **measured, n=rows[0]["n"], length=limits.length, windows=cut))
    return rows


def _window(bench: Bench, index: int, length: int) -> list[dict[str, Any]]:
    """Each system's sums over one window."""
    ids = bench.window(index, length)
    keys = [bench.key(system, [digest_of(ids), SKIP, TAIL, BLOCK]) for system in bench.systems]
    found = [bench.store.get(name, key) for key in keys]
    missing = [i for i, value in enumerate(found) if value is None]
    if missing:
        raw = _outputs(bench, None, index, ids)
        others = [_outputs(bench, bench.systems[i], index, ids) for i in missing]
        skip = min(SKIP, length // 2)
        nll, losses = compare(
            bench.model, raw[skip:-1], [other[skip:-1] for other in others], torch.tensor(ids[skip + 1 :])
        )
        for i, loss in zip(missing, losses, strict=True):
            found[i] = value = _sums(nll, loss)
            bench.store.put(name, keys[i], value)
    return [value for value in found if value is not None]


def _outputs(bench: Bench, system: System | None, index: int, ids: list[int]) -> Tensor:
    cache = cache_of(bench.model, system, bench.page_size, 1, len(ids))
    state = cache.new(len(ids))
    out = bench.model.prefill(cache, [(state, ids)])[0]
    if system is not None and len(ids) == CONTEXT:
        bench.keep_bytes(system, index, cache.context_bytes(state))
    return out


def _sums(nll: Tensor, loss: Loss) -> dict[str, Any]:
    def sums(span: slice) -> dict[str, float]:
        parts = {"nll_raw": nll, "kl": loss.kl, "nll": loss.nll, "top1": loss.top1}
        return {"tokens": len(nll[span]), **{what: float(x[span].sum()) for what, x in parts.items()}}

    blocks = [sums(slice(at, at + BLOCK)) for at in range(0, len(nll), BLOCK)]
    # The last token's target lies outside the window, so the tail has one token less.
    return {"blocks": blocks, "tail": sums(slice(-(min(TAIL, len(nll) + 1) - 1), None))}


def _row(bench: Bench, system: System, windows: list[dict[str, Any]], limits: Limits) -> Row:
    per_window = [_total(value["blocks"]) for value in windows]
    blocks = [block for value in windows for block in value["blocks"]]
    whole, tail = _total(blocks), _total([value["tail"] for value in windows])
    by_window = mean_and_error([one["kl"] / one["tokens"] for one in per_window])[1]
    by_block = mean_and_error([one["kl"] / one["tokens"] for one in blocks])[1]
    change = [(one["nll"] - one["nll_raw"]) / one["tokens"] for one in (per_window if len(windows) > 1 else blocks)]
    return bench.row(
        system,
        name,
        **_means(whole),
        **{f"{what}_tail": value for what, value in _means(tail).items()},
        ppl=math.exp(whole["nll"] / whole["tokens"]),
        ppl_raw=math.exp(whole["nll_raw"] / whole["tokens"]),
        spread=by_window if len(windows) >= MIN_WINDOWS else by_block,
        spread_windows=by_window,
        spread_blocks=by_block,
        spread_ppl_rel=mean_and_error(change)[1],
        kl_windows=[one["kl"] / one["tokens"] for one in per_window],
        n=int(whole["tokens"]),
        length=limits.length,
    )


def _total(parts: list[dict[str, float]]) -> dict[str, float]:
    return {what: sum(part[what] for part in parts) for what in parts[0]}


def _means(total: dict[str, float]) -> dict[str, float]:
    count = total["tokens"]
    ppl_rel = math.exp((total["nll"] - total["nll_raw"]) / count) - 1
    return {"kl": total["kl"] / count, "top1": total["top1"] / count, "ppl_rel": ppl_rel}
