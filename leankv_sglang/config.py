"""The one validated, frozen configuration; the launcher hands it to every process through the environment."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from leankv_kernels.layout import TIERS, Tier
from leankv_kernels.layout.format import CUTS, any_of
from leankv_sglang.byte_size import say_bytes
from leankv_sglang.errors import LeanKVError
from leankv_sglang.handover import fetch

CONFIG_ENV = "LEANKV_CONFIG"
NAME = "leankv"
"""Under which SGLang knows our attention backend and our radix cache."""
PAGE_SIZES = (64, 128, 256)
DEFAULT_PAGE_SIZE = 128
TIER_NAMES = tuple(TIERS)
ROTATIONS = ("hadamard", "none")
SIGNIFICANCE_NAMES = ("attention", "none", "predictor")
MAX_NEAR_PAGES, MAX_KEEP_FIRST = 64, 1024
MATCHES = ("strict", "relaxed")
LOADS = ("always", "auto", "never")
DEFAULT_STORE_SIZE = 16 << 30

Thresholds = float | tuple[tuple[float, ...], ...]
"""One number for all heads, or one per layer and KV head."""


class Alphas(NamedTuple):
    """Thresholds of a token's significance: above the first it is high, else above the second mid, else from the third
    on low, else pruned."""

    high: Thresholds = 1.0
    mid: Thresholds = math.inf
    low: Thresholds = 0.0


@dataclass(frozen=True)
class LeanKVConfig:
    """How pages are compressed.

    Args:
        high, low: formats of the outer tiers, equal for a single tier; ``low`` must be a cut of ``high``.
        mid: format of a tier between them, if any: the keys of one, the values of the other.
        alpha_high: a token above this multiple of uniform attention is high.
        alpha_mid: a token above this multiple, and not high, is mid.
        alpha_low: a token below this multiple, and neither, is pruned; 0 prunes nothing.
        rotation: ``hadamard`` or ``none``, of keys and values before quantizing.
        significance: the strategy that scores tokens.
        near_pages: pages before a query's own page that it reads with every token high.
        keep_first: pages at the start of a sequence whose tokens are mid at least, without a middle tier low, in heads
            that keep anything.
        demote: whether, under pressure, refinements are cut too before pages are evicted.
        match: whether a hit may read demoted pages: ``strict``, never, or ``relaxed``.
        kernels: backend of the ops, or ``auto``.
        profile: name of the profile and point that the thresholds came from, for display.
        points: the profile's named thresholds, among which a request may choose.
        predictor: the profile's file, for the weights of the significance ``predictor``.
        predictor_digest: SHA-256 of that file in hex, which every process that reads it holds it to.
        host_memory: bytes of main memory for pages that leave the device.
        store: where pages are kept that outlive the server, ``file:FOLDER`` or ``mooncake://MASTER:PORT``, or nowhere.
        store_size: bytes that all pages in the folder may take; of this machine's memory, for Mooncake.
        load: whether prefixes come from there: ``always``, ``auto`` where that is quicker than computing, or ``never``.
        show_text: whether the live page may show the beginnings of prompts.

    Raises:
        LeanKVError: one sentence naming the flag that is wrong and what it takes.
    """

    high: str = "k8v4"
    low: str = "k4v2"
    alpha_high: Thresholds = 1.0
    alpha_low: Thresholds = 0.0
    alpha_mid: Thresholds = math.inf
    mid: str | None = None
    rotation: str = "hadamard"
    significance: str = "attention"
    near_pages: int = 1
    keep_first: int = 0
    demote: bool = False
    match: str = "strict"
    kernels: str = "auto"
    profile: str | None = None
    points: tuple[tuple[str, Alphas], ...] = ()
    predictor: str | None = None
    predictor_digest: str | None = None
    host_memory: int = 0
    store: str | None = None
    store_size: int = DEFAULT_STORE_SIZE
    load: str = "auto"
    show_text: bool = False

    def __post_init__(self) -> None:
        check_tiers(self.high, self.mid, self.low)
        one_of("--leankv-rotation", self.rotation, ROTATIONS)
        one_of("--leankv-significance", self.significance, SIGNIFICANCE_NAMES)
        one_of("--leankv-match", self.match, MATCHES)
        one_of("--leankv-load", self.load, LOADS)
        if self.match == "relaxed" and not self.demote:
            raise LeanKVError("--leankv-match relaxed lets hits read demoted pages; it needs --leankv-demote.")
        if not 0 <= self.near_pages <= MAX_NEAR_PAGES:
            raise LeanKVError(
                f"--leankv-near-pages is a number of pages from 0 to {MAX_NEAR_PAGES}, not {self.near_pages}."
            )
        if not 0 <= self.keep_first <= MAX_KEEP_FIRST:
            raise LeanKVError(
                f"--leankv-keep-first is a number of pages from 0 to {MAX_KEEP_FIRST}, not {self.keep_first}."
            )
        if self.significance == "predictor" and not self.predictor:
            raise LeanKVError("--leankv-significance predictor comes with a profile; give --leankv-profile instead.")
        for alphas in (self.alphas, *dict(self.points).values()):
            check_thresholds(alphas, self.significance)
        if self.host_memory < 0:
            raise LeanKVError(f"--leankv-host-memory is a number of bytes of at least 0, not {self.host_memory}.")
        if self.store_size < 1:
            raise LeanKVError(f"--leankv-store-size is a number of bytes of at least 1, not {self.store_size}.")
        if self.store is not None and not re.fullmatch(r"file:.+|mooncake://.+", self.store):
            raise LeanKVError(f"--leankv-store is file:FOLDER or mooncake://MASTER:PORT, not {self.store!r}.")
        if self.mid is None and any(x != math.inf for x in _numbers(self.alpha_mid)):
            raise LeanKVError(
                f"--leankv-alpha-mid {_say(self.alpha_mid)} needs a middle tier, such as --leankv-tiers k8v4,k4v4,k4v2."
            )

    @property
    def tiers(self) -> str:
        """The tiers as the flag takes them."""
        return ",".join(dict.fromkeys(name for name in (self.high, self.mid, self.low) if name))

    @property
    def formats(self) -> tuple[Tier, Tier]:
        """The high and the low tier's formats."""
        return TIERS[self.high], TIERS[self.low]

    @property
    def mid_format(self) -> Tier | None:
        """The middle tier's format, if there is one."""
        return TIERS[self.mid] if self.mid else None

    @property
    def offloads(self) -> bool:
        """Whether pages are kept anywhere beyond the device."""
        return bool(self.host_memory or self.store)

    @property
    def alphas(self) -> Alphas:
        """The server's own thresholds."""
        return Alphas(self.alpha_high, self.alpha_mid, self.alpha_low)

    def to_json(self) -> str:
        """One line of JSON that :meth:`from_json` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LeanKVConfig:
        """The inverse of :meth:`to_json`."""
        fields = json.loads(text)
        for name in ("alpha_high", "alpha_mid", "alpha_low"):
            fields[name] = freeze_thresholds(fields[name])
        fields["points"] = tuple((name, Alphas(*map(freeze_thresholds, point))) for name, point in fields["points"])
        return cls(**fields)

    def describe(self) -> str:
        """The configuration in one line for people."""
        parts = [f"tiers {self.tiers}", f"near pages {self.near_pages}", f"rotation {self.rotation}"]
        parts.append(f"significance {self.significance}")
        if self.significance != "none":
            if self.profile:
                parts.append(f"thresholds from {self.profile}")
            else:
                mid = f"mid {_say(self.alpha_mid)}, " if self.mid else ""
                parts.append(f"alpha high {_say(self.alpha_high)}, {mid}low {_say(self.alpha_low)}")
        if self.keep_first:
            parts.append(f"first pages kept {self.keep_first}")
        if self.demote:
            parts.append(f"demotion on, {self.match} matches")
        if self.host_memory:
            parts.append(f"{say_bytes(self.host_memory)} of host memory")
        if self.store:
            parts.append(f"pages kept in {self.store}, up to {say_bytes(self.store_size)}")
        return ", ".join(parts)


def check_thresholds(alphas: Alphas, significance: str, name: str = "--leankv-alpha-{}") -> None:
    """Raise :class:`LeanKVError`, calling each by ``name``, unless they can be thresholds of that significance."""
    names = [name.format(tier) for tier in Alphas._fields]
    high, _, low = alphas
    for name, value, top in zip(names, alphas, (math.inf, math.inf, sys.float_info.max), strict=True):
        for number in _numbers(value):
            if not 0 <= number <= top:
                raise LeanKVError(f"{name} is a number of at least 0, not {number}.")
    if isinstance(high, (int, float)) and isinstance(low, (int, float)) and low > high:
        raise LeanKVError(f"{names[2]} must not be above {names[0]}.")
    if significance == "none" and any(_numbers(low)):
        raise LeanKVError(f"{names[2]} prunes by significance; it cannot go with significance none.")


def check_tiers(high: str, mid: str | None, low: str) -> None:
    """Raise :class:`LeanKVError` unless the formats exist, the low one is a cut of the high one, and the middle one has
    the keys of one and the values of the other."""
    for name in (high, *([mid] if mid else []), low):
        one_of("--leankv-tiers", name, TIER_NAMES)
    cuts = [int(h) - int(lo) for h, lo in zip((high[1], high[3]), (low[1], low[3]), strict=True)]
    if any(c not in CUTS for c in cuts):
        raise LeanKVError(
            f"--leankv-tiers {high},{low}: the second tier must be the first with {any_of(CUTS)} bits cut off its keys "
            "and values; k8v4,k4v2 and k8v8,k4v4 are such pairs."
        )
    if mid and (mid in (high, low) or mid not in (high[:2] + low[2:], low[:2] + high[2:])):
        raise LeanKVError(
            f"--leankv-tiers {high},{mid},{low}: the middle tier must have the keys of one of the others and the "
            "values of the other, as in k8v4,k4v4,k4v2."
        )


def parse_tiers(text: str) -> tuple[str, str | None, str]:
    """``k8v4,k4v4,k4v2``, ``k8v4,k4v2`` or a single ``k8v4`` to (high, mid, low)."""
    names = [n.strip().lower() for n in text.split(",")]
    if len(names) > 3 or not all(names):
        raise LeanKVError(f"--leankv-tiers takes one to three tiers, such as k8v4,k4v4,k4v2, not {text!r}.")
    high, mid, low = names[0], names[1] if len(names) == 3 else None, names[-1]
    check_tiers(high, mid, low)
    return high, mid, low


def freeze_thresholds(value: Any) -> Thresholds:
    """A number or a nested list of numbers, as the config keeps it."""
    if isinstance(value, (list, tuple)):
        return tuple(tuple(float(x) for x in row) for row in value)
    return float(value)


def active_config() -> LeanKVConfig | None:
    """The configuration the launcher left for this process, or None where LeanKV is off.

    Raises:
        LeanKVError: where it can no longer be read as it was left.
    """
    left = os.environ.get(CONFIG_ENV)
    return _parse_cached(left) if left else None


def required_config() -> LeanKVConfig:
    """:func:`active_config`, or an error where there is none."""
    config = active_config()
    if config is None:
        raise LeanKVError("LeanKV is not configured in this process; start with python -m leankv_sglang.launch_server.")
    return config


@lru_cache(maxsize=8)
def _parse_cached(left: str) -> LeanKVConfig:
    return LeanKVConfig.from_json(fetch(left))


def _numbers(value: Thresholds) -> list[float]:
    return [value] if isinstance(value, (int, float)) else [x for row in value for x in row]


def _say(value: Thresholds) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else "per head"


def one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise :class:`LeanKVError`, naming the flag, for a value that is not allowed."""
    if value not in allowed:
        raise LeanKVError(f"{flag} takes {', '.join(allowed)}, not {value!r}.")
