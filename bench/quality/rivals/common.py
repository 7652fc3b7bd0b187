"""What every rival is measured by: the same windows, loss against the engine's own 16-bit cache, bytes really held."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Protocol

from torch import Tensor

from bench.common.data import wikitext
from bench.quality.items import digest_of

CONTEXT, TAIL, CHUNK = 3584, 512, 128
"""Tokens compressed before any token is scored, tokens scored after them, and how many of those enter at a time."""


@dataclass(frozen=True)
class Profile:
    """One setting of one system; ``setting`` is what its engine needs to know."""

    system: str
    name: str
    note: str = ""
    setting: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass
class Trace:
    """What a pass over a window left: logits ``[TAIL - 1, V]`` that predict its last tokens, and the cache's bytes."""

    logits: Tensor
    held_context: int
    """After the context was compressed."""
    held: int
    """At the end of the window."""
    held_if_freed: int | None = None
    """At the end, had the system given back what it only masks."""


class Engine(Protocol):
    """An inference engine with its rivals; ``trace`` with no profile runs its own 16-bit cache."""

    name: str

    def profiles(self) -> list[Profile]:
        """The settings that this engine can be measured with."""

    def trace(self, ids: Tensor, profile: Profile | None) -> Trace:
        """Runs one window: the context first, then the tail in chunks over what the cache kept."""


@dataclass
class Sample:
    """One profile on one window; sums are over ``tokens`` predictions, none if the profile failed."""

    system: str
    profile: str
    window: int
    model: str
    raw: int
    """Bytes of a 16-bit cache of the whole window."""
    raw_context: int
    tokens: int = 0
    kl: float = 0.0
    top1: float = 0.0
    nll: float = 0.0
    nll_raw: float = 0.0
    held_context: int = 0
    held: int = 0
    held_if_freed: int | None = None
    note: str = ""


def windows(tokenizer: Any, count: int) -> list[Tensor]:
    """The first ``count`` windows of the text's second half, which no profile is tuned on."""
    ids = tokenizer(wikitext("heldout"), return_tensors="pt", add_special_tokens=False, verbose=False).input_ids[0]
    return list(ids[: count * (CONTEXT + TAIL)].split(CONTEXT + TAIL))


def loss(raw: Tensor, compressed: Tensor, target: Tensor) -> dict[str, float]:
    """Sums over positions: KL(raw || compressed), equal first choices, and negative log-likelihood of both."""
    full, ours = raw.float().log_softmax(-1), compressed.float().log_softmax(-1)
    picked = target[:, None]
    return {
        "kl": float((full.exp() * (full - ours)).sum(-1).sum()),
        "top1": float((full.argmax(-1) == ours.argmax(-1)).sum()),
        "nll": -float(ours.gather(1, picked).sum()),
        "nll_raw": -float(full.gather(1, picked).sum()),
    }


class Store:
    """Samples measured so far, one JSON line each, so that an interrupted run goes on where it stopped."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.samples = [Sample(**json.loads(line)) for line in lines]

    def has(self, profile: Profile, window: int, model: str) -> bool:
        """Whether this profile was measured, or failed, on this window."""
        key = (profile.system, profile.name, window, model)
        return any((s.system, s.profile, s.window, s.model) == key for s in self.samples)

    def add(self, sample: Sample) -> None:
        """Keeps one sample."""
        self.samples.append(sample)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as out:
            out.write(json.dumps(asdict(sample)) + "\n")


def to_rows(samples: Iterable[Sample], texts: Sequence[Tensor] = ()) -> list[dict[str, Any]]:
    """One row per profile over its windows, in the order of first appearance.

    Args:
        texts: the windows, so that a row can name those it is about.
    """
    digests = [digest_of(ids.tolist()) for ids in texts]
    groups: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.system, sample.profile, sample.model), []).append(sample)
    return [_row(*key, group, digests) for key, group in groups.items()]


def _row(system: str, profile: str, model: str, samples: Sequence[Sample], digests: Sequence[str]) -> dict[str, Any]:
    done = [s for s in samples if s.tokens]
    row: dict[str, Any] = dict.fromkeys(COLUMNS)
    row |= {"system": system, "profile": profile, "task": "text", "model": model, "n": len(done)}
    row["note"] = next((s.note for s in samples if s.note), "")
    if done and digests:
        row["windows"] = [digests[s.window] for s in sorted(done, key=lambda s: s.window)]
    if done:
        tokens = sum(s.tokens for s in done)
        means = [s.kl / s.tokens for s in done]
        row |= {
            "ratio": sum(s.raw for s in done) / sum(s.held for s in done),
            "ratio_context": sum(s.raw_context for s in done) / sum(s.held_context for s in done),
            "kl_tail": fmean(means),
            "top1_tail": sum(s.top1 for s in done) / tokens,
            "ppl_rel_tail": math.expm1(sum(s.nll - s.nll_raw for s in done) / tokens),
            "spread": stdev(means) if len(means) > 1 else None,
        }
        freed = [s.held_if_freed for s in done if s.held_if_freed is not None]
        if freed:
            row["ratio_if_freed"] = sum(s.raw for s in done) / sum(freed)
    return row


COLUMNS = (
    *("system", "profile", "task", "ratio", "kl_tail", "top1_tail", "ppl_rel_tail", "kl", "ppl_rel", "top1"),
    *("score", "score_raw", "model", "n", "spread", "note", "ratio_context", "ratio_if_freed", "windows"),
)
"""Of a row. ``ratio`` is at the end of the window, ``ratio_context`` right after compressing, ``spread`` the standard
deviation of ``kl_tail`` between windows, ``windows`` a digest of each window's tokens, which equal rows of ours share;
None is "not measured"."""


def tensor_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Bytes of every tensor reachable from ``value``, each memory once.

    A slice counts as itself: what it was cut from goes when the cache next appends to it.
    """
    seen = set() if seen is None else seen
    if value is None or id(value) in seen or isinstance(value, (str, bytes, int, float, type)):
        return 0
    seen.add(id(value))
    inner: Iterable[Any]
    if isinstance(value, Tensor):
        # A tensor subclass that wraps others (quanto's) has no memory of its own.
        if hasattr(value, "__tensor_flatten__"):
            return sum(tensor_bytes(getattr(value, name), seen) for name in value.__tensor_flatten__()[0])
        if not value.numel() or value.data_ptr() in seen:
            return 0
        seen.add(value.data_ptr())
        return value.nbytes
    if isinstance(value, dict):
        inner = value.values()
    elif isinstance(value, (list, tuple)):
        inner = value
    else:
        inner = getattr(value, "__dict__", {}).values()
    return sum(tensor_bytes(part, seen) for part in inner)
