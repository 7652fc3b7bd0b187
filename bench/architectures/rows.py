"""One row of the table: an architecture in stock SGLang, in LeanKV, and in transformers."""

from __future__ import annotations

import math
import time
from concurrent.futures import Executor
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from bench.architectures.asks import LENGTHS, NEW_TOKENS, Answer, Findings
from bench.architectures.systems import SYSTEMS, Fleet
from bench.architectures.truth import Truth, mean_gap
from tests.models_served import Model

ALLOWED = 1.2
"""How much larger LeanKV's error may be than transformers' own in bfloat16, on average."""
EQUALITIES = {
    "hit_equals_miss": "hit",
    "second_turn_equal": "second turn",
    "batch_equal": "batch",
    "chunks_equal": "chunks",
}
"""What is to equal a miss, by column, in words."""
NO_WINDOW = "SGLang's class has no code for the window"
WIDE_WINDOW = "SGLang's window is a token too wide"
OTHER_MODEL = {
    **dict.fromkeys(("mistral-window", "ministral", "phi3-window", "starcoder2-window", "qwen2-window"), NO_WINDOW),
    "vaultgemma": "SGLang's class leaves the cap out",
    **dict.fromkeys(("cohere2", "cwm", "cohere2-moe"), WIDE_WINDOW),
}
"""Where SGLang's class computes something else than the model is, in what: errors there say nothing of a cache."""
NOTES = OTHER_MODEL | {
    "gemma2": "stock leaves the cap out on a CPU",
    **dict.fromkeys(("granite-swa", "granitemoe-swa", "mimo-v2"), "stock has no sinks on a CPU"),
    **dict.fromkeys(("mellum", "laguna"), "stock's own hit differs from its miss"),
}
"""What else is to be known of a row."""
Row = dict[str, Any]


def row(name: str, model: Model, folder: Path, fleet: Fleet, pool: Executor) -> Row:
    """Make a model, ask its servers, all at once, and compare them with each other and with transformers.

    Raises:
        Exception: where transformers cannot make the model.
    """
    begin = time.monotonic()
    folders = model.build(folder)
    jobs = {system: pool.submit(fleet.find, system, name, model, folders.served) for system in SYSTEMS}
    found = {system: job.result() for system, job in jobs.items()}
    stock, leankv, *chunked = found.values()
    lost = leankv.lost or next((one.lost for one in chunked if one.lost), None)
    result: Row = {
        "architecture": name,
        "stock": stock.lost or (f"served ({stock.note})" if stock.note else "served"),
        "served": lost is None and not model.embeds,
        "refused_because": lost,
        "hit_equals_miss": leankv.hit_equals_miss,
        "hit_share": leankv.hit_share,
        "second_turn_equal": leankv.second_turn_equal,
        "batch_equal": leankv.batch_equal,
        "chunks_equal": None if lost or model.embeds else all(_equal(leankv, one) for one in chunked),
        "stock_hit_equals_miss": stock.hit_equals_miss,
        "stock_second_turn_equal": stock.second_turn_equal,
        "stock_batch_equal": stock.batch_equal,
    }
    if not model.embeds:
        result |= _errors(model, folders.truth, stock.misses, leankv.misses)
    return {**result, "seconds": round(time.monotonic() - begin, 1)}


def _equal(whole: Findings, chunked: Findings) -> bool:
    return all(a.same(b) for a, b in zip(whole.misses, chunked.misses, strict=True))


def _errors(model: Model, folder: Path, stock: list[Answer], leankv: list[Answer]) -> Row:
    exact = Truth(model, folder, torch.float32)
    errors = {"mean_error": leankv, "stock_error": stock}
    result: Row = {"max_dlogprob": _farthest(leankv, stock) if leankv and stock else None}
    for column, answers in errors.items():
        result[column] = result[column.replace("mean", "leankv").replace("error", "decode_error")] = None
        if answers:
            true = [exact.logprobs(one.sequence) for one in answers]
            said = [one.whole for one in answers]
            result[column] = mean_gap(said, true)
            result[column.replace("mean", "leankv").replace("error", "decode_error")] = mean_gap(said, true, NEW_TOKENS)
    sequences = [one.sequence for one in leankv or stock]
    result["transformers_error"] = result["context"] = None
    if sequences:
        rounded = Truth(model, folder, torch.bfloat16)
        true = [exact.logprobs(one) for one in sequences]
        result["transformers_error"] = mean_gap([rounded.logprobs(one) for one in sequences], true)
        result["context"] = exact.context(sequences[LENGTHS.index(300)])
    return result


def _farthest(leankv: list[Answer], stock: list[Answer]) -> float | None:
    """The largest difference of log-probabilities, up to where answers part; None where one is NaN."""
    gaps = [0.0]
    for one, other in zip(leankv, stock, strict=True):
        parted = next((i for i, (a, b) in enumerate(zip(one.sequence, other.sequence, strict=True)) if a != b), None)
        end = None if parted is None else parted - 1
        for a, b in zip(one.whole[:end], other.whole[:end], strict=True):
            if a is None or b is None:
                return None
            gaps.append(abs(a - b))
    return max(gaps)


def shown(one: Row) -> Row:
    """The row for people."""

    def say(value: Any) -> Any:
        return {None: "-", True: "yes", False: "no"}.get(value, value) if not isinstance(value, float) else value

    why = one.get("refused_because") or (one["stock"] if one["stock"] != "served" else "")
    return {
        "architecture": one["architecture"],
        "stock": "yes" if one["stock"].startswith("served") else "no",
        "served": say(one["served"]),
        "hit=miss": say(one["hit_equals_miss"]),
        "2nd turn": say(one["second_turn_equal"]),
        "batch": say(one["batch_equal"]),
        "chunks": say(one["chunks_equal"]),
        "stock hit=miss": say(one["stock_hit_equals_miss"]),
        "max dlogprob": say(one.get("max_dlogprob")),
        "error": say(one.get("mean_error")),
        "stock error": say(one.get("stock_error")),
        "transformers": say(one.get("transformers_error")),
        "why not": why[:90],
    }


def verdict(rows: list[Row]) -> str:
    """The one line: how LeanKV's error compares with transformers' own."""
    ratios = {one["architecture"]: ratio(one, "mean_error") for one in rows if one["served"]}
    if not ratios:
        return "No architecture was served."
    own = {name: value for name, value in ratios.items() if name not in OTHER_MODEL}
    said = [f"{name} x {value:.2f} ({OTHER_MODEL[name]})" for name, value in ratios.items() if name in OTHER_MODEL]
    left_out = f" Left out, for stock as for LeanKV: {', '.join(said)}." if said else ""
    if not own:
        return left_out.strip()
    mean, worst = fmean(own.values()), max(own, key=lambda name: own[name])
    kept = "no larger" if mean <= ALLOWED else "LARGER"
    return (
        f"Mean error to float32 is {kept} than transformers' own bf16 x {ALLOWED} on average: x {mean:.2f} over "
        f"{len(own)} architectures served, at most x {own[worst]:.2f} ({worst}).{left_out}"
    )


def ratio(one: Row, error: str) -> float:
    """An error of a row as a multiple of transformers' own in bfloat16; NaN where nothing was served."""
    return one[error] / one["transformers_error"] if one.get(error) is not None else math.nan


def unequal(rows: list[Row]) -> list[str]:
    """Names of those that are served, and whose answers differ from their misses."""
    return [one["architecture"] for one in rows if one["served"] and not all(one[name] for name in EQUALITIES)]


def markdown(rows: list[Row]) -> str:
    """The table of what is served, for docs/models.md."""
    lines = [["architecture", "equal to its miss", "error", "stock's error", ""], ["---"] * 5]
    for one in rows:
        if one["served"]:
            equal = ", ".join(word for name, word in EQUALITIES.items() if one[name])
            errors = [f"{ratio(one, error):.2f}" for error in ("mean_error", "stock_error")]
            lines.append([one["architecture"], equal, *errors, NOTES.get(one["architecture"], "")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| nan |", "| - |")
