"""The one validated, frozen configuration; the launcher hands it to every process through the environment."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from leankv_kernels.layout import TIERS, Tier
from leankv_sglang.errors import LeanKVError

CONFIG_ENV = "LEANKV_CONFIG"
PAGE_SIZES = (64, 128, 256)
DEFAULT_PAGE_SIZE = 128
TIER_NAMES = tuple(TIERS)
ROTATIONS = ("hadamard", "none")
SIGNIFICANCE_NAMES = ("attention", "none")
MAX_WINDOW = 64
MATCHES = ("strict", "relaxed")

Thresholds = float | tuple[tuple[float, ...], ...]
"""One number for all heads, or one per layer and KV head."""


@dataclass(frozen=True)
class LeanKVConfig:
    """How pages are compressed.

    Args:
        high, low: formats of the two tiers, equal for a single tier; ``low`` must be a cut of ``high``.
        alpha_high: a token above this multiple of uniform attention is high.
        alpha_low: a token below this multiple is pruned; 0 prunes nothing.
        rotation: ``hadamard`` or ``none``, of keys and values before quantizing.
        significance: the strategy that scores tokens.
        window: pages before a query's own page that it reads with every token high.
        demote: whether, under pressure, refinements are cut too before pages are evicted.
        match: whether a hit may read demoted pages: ``strict``, never, or ``relaxed``.
        kernels: backend of the ops, or ``auto``.
        profile: where the thresholds came from, for display.

    Raises:
        LeanKVError: one sentence naming the flag that is wrong and what it takes.
    """

    high: str = "k8v4"
    low: str = "k4v2"
    alpha_high: Thresholds = 1.0
    alpha_low: Thresholds = 0.0
    rotation: str = "hadamard"
    significance: str = "attention"
    window: int = 1
    demote: bool = False
    match: str = "strict"
    kernels: str = "auto"
    profile: str | None = None

    def __post_init__(self) -> None:
        check_tiers(self.high, self.low)
        _one_of("--leankv-rotation", self.rotation, ROTATIONS)
        _one_of("--leankv-significance", self.significance, SIGNIFICANCE_NAMES)
        _one_of("--leankv-match", self.match, MATCHES)
        if self.match == "relaxed" and not self.demote:
            raise LeanKVError("--leankv-match relaxed lets hits read demoted pages; it needs --leankv-demote.")
        if not 0 <= self.window <= MAX_WINDOW:
            raise LeanKVError(f"--leankv-window is a number of pages from 0 to {MAX_WINDOW}, not {self.window}.")
        check_thresholds(self.alpha_high, self.alpha_low, self.significance)

    @property
    def tiers(self) -> str:
        """The tiers as the flag takes them."""
        return self.high if self.high == self.low else f"{self.high},{self.low}"

    @property
    def formats(self) -> tuple[Tier, Tier]:
        """The high and the low tier's formats."""
        return TIERS[self.high], TIERS[self.low]

    def to_json(self) -> str:
        """One line of JSON that :meth:`from_json` reads back."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LeanKVConfig:
        """The inverse of :meth:`to_json`."""
        fields = json.loads(text)
        for name in ("alpha_high", "alpha_low"):
            fields[name] = freeze_thresholds(fields[name])
        return cls(**fields)

    def describe(self) -> str:
        """The configuration in one line for people."""
        parts = [f"tiers {self.tiers}", f"window {self.window}", f"rotation {self.rotation}"]
        parts.append(f"significance {self.significance}")
        if self.significance != "none":
            if self.profile:
                parts.append(f"thresholds from {self.profile}")
            else:
                parts.append(f"alpha high {_say(self.alpha_high)}, low {_say(self.alpha_low)}")
        if self.demote:
            parts.append(f"demotion on, {self.match} matches")
        return ", ".join(parts)


def check_thresholds(
    high: Thresholds,
    low: Thresholds,
    significance: str,
    names: tuple[str, str] = ("--leankv-alpha-high", "--leankv-alpha-low"),
) -> None:
    """Raise :class:`LeanKVError`, calling the two by ``names``, unless they can be thresholds of that significance."""
    for name, value, top in zip(names, (high, low), (math.inf, sys.float_info.max), strict=True):
        for number in _numbers(value):
            if not 0 <= number <= top:
                raise LeanKVError(f"{name} is a number of at least 0, not {number}.")
    if isinstance(high, (int, float)) and isinstance(low, (int, float)) and low > high:
        raise LeanKVError(f"{names[1]} must not be above {names[0]}.")
    if significance == "none" and any(_numbers(low)):
        raise LeanKVError(f"{names[1]} prunes by significance; it cannot go with significance none.")


def check_tiers(high: str, low: str) -> None:
    """Raise :class:`LeanKVError` unless the two formats exist and the low one is a cut of the high one."""
    for name in (high, low):
        _one_of("--leankv-tiers", name, TIER_NAMES)
    cuts = [int(h) - int(lo) for h, lo in zip((high[1], high[3]), (low[1], low[3]), strict=True)]
    if any(c not in (0, 2, 4) for c in cuts):
        raise LeanKVError(
            f"--leankv-tiers {high},{low}: the second tier must be the first with 0, 2 or 4 bits cut off its keys and "
            "values; k8v4,k4v2 and k8v8,k4v4 are such pairs."
        )


def parse_tiers(text: str) -> tuple[str, str]:
    """``k8v4,k4v2`` or a single ``k8v4`` to (high, low)."""
    names = [n.strip().lower() for n in text.split(",")]
    if len(names) > 2 or not all(names):
        raise LeanKVError(f"--leankv-tiers takes one tier or two, such as k8v4,k4v2, not {text!r}.")
    high, low = names[0], names[-1]
    check_tiers(high, low)
    return high, low


def freeze_thresholds(value: Any) -> Thresholds:
    """A number or a nested list of numbers, as the config keeps it."""
    if isinstance(value, (list, tuple)):
        return tuple(tuple(float(x) for x in row) for row in value)
    return float(value)


def active_config() -> LeanKVConfig | None:
    """The configuration the launcher left for this process, or None where LeanKV is off."""
    text = os.environ.get(CONFIG_ENV)
    return _parse_cached(text) if text else None


def required_config() -> LeanKVConfig:
    """:func:`active_config`, or an error where there is none."""
    config = active_config()
    if config is None:
        raise LeanKVError("LeanKV is not configured in this process; start with python -m leankv_sglang.launch_server.")
    return config


@lru_cache(maxsize=8)
def _parse_cached(text: str) -> LeanKVConfig:
    return LeanKVConfig.from_json(text)


def _numbers(value: Thresholds) -> list[float]:
    return [value] if isinstance(value, (int, float)) else [x for row in value for x in row]


def _say(value: Thresholds) -> str:
    return f"{value:g}" if isinstance(value, (int, float)) else "per head"


def _one_of(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise LeanKVError(f"{flag} takes {', '.join(allowed)}, not {value!r}.")
