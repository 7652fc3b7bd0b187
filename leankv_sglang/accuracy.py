"""The accuracy of one request: the thresholds its pages are committed with.

It travels inside the request's ``cache_salt``, which SGLang makes part of the radix key and hands to the scheduler:
what is shared and what it was compressed with cannot come apart. The server's own accuracy adds nothing to the salt.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from leankv_sglang.config import LeanKVConfig, Thresholds, check_thresholds
from leankv_sglang.errors import LeanKVError

FIELD = "leankv"
"""Name of the field in requests and responses."""
OWN = "balanced"
"""The name of the server's own accuracy."""
NAMED: dict[str, tuple[Thresholds | None, Thresholds | None]] = {
    # Significance is never negative, so all of it is above this; above 0 it is not.
    "lossless": (-1.0, 0.0),
    OWN: (None, None),
    "small": (math.inf, 0.0),
}
"""alpha_high and alpha_low of each name; None is the server's own. The one place that knows the names."""
_MARK = "leankv:"
_THRESHOLDS = ("alpha_high", "alpha_low")
_NAMES = ", ".join(NAMED)
_FORM = f'{{"profile": name}} with a name of {_NAMES}, or {{"alpha_high": number, "alpha_low": number}}'


@dataclass(frozen=True)
class Accuracy:
    """Effective thresholds; equal ones have equal ``spec``, which is what the radix key holds."""

    spec: str
    high: Thresholds
    low: Thresholds

    @property
    def is_own(self) -> bool:
        """Whether these are the server's own thresholds."""
        return not self.spec

    def describe(self) -> dict[str, Any]:
        """As a request would ask for it; a threshold that is a profile's table per head is left out."""
        if self.is_own or self.spec in NAMED:
            return {"profile": self.spec or OWN}
        given = zip(_THRESHOLDS, (self.high, self.low), strict=True)
        return {name: value for name, value in given if isinstance(value, float)}


def resolve(field: Any, config: LeanKVConfig) -> Accuracy:
    """The accuracy that a request's field asks for; None is the server's own.

    Raises:
        LeanKVError: one sentence saying what is wrong with the field.
    """
    if field is None:
        return _accuracy(None, None, config)
    if not isinstance(field, dict) or not field:
        raise LeanKVError(f"{FIELD} takes {_FORM}, not {_say(field)}.")
    if unknown := [name for name in field if name not in ("profile", *_THRESHOLDS)]:
        raise LeanKVError(f"{FIELD} takes {_FORM}; it has no field {_say(unknown[0])}.")
    if "profile" in field:
        if len(field) > 1:
            raise LeanKVError(f"{FIELD} takes a profile or thresholds, not both.")
        name = field["profile"]
        if not isinstance(name, str) or name not in NAMED:
            raise LeanKVError(f"{FIELD}.profile takes {_NAMES}, not {_say(name)}.")
        return _accuracy(*NAMED[name], config)
    for name, value in field.items():
        if not _is_number(value):
            raise LeanKVError(f"{FIELD}.{name} is a number of at least 0, not {_say(value)}.")
    # Adding 0 makes -0 and 0 one.
    high, low = (float(field[name]) + 0.0 if name in field else None for name in _THRESHOLDS)
    accuracy = _accuracy(high, low, config)
    names = [f"{FIELD}.{name}" for name in _THRESHOLDS]
    check_thresholds(accuracy.high, accuracy.low, config.significance, (names[0], names[1]))
    return accuracy


def salted(accuracy: Accuracy, salt: Any) -> Any:
    """A request's ``cache_salt`` (None, a string, or one per prompt) with the accuracy in it; what SGLang will refuse
    stays as it is. Different pairs of accuracy and salt never give the same."""
    if isinstance(salt, list):
        return [salted(accuracy, one) if isinstance(one, str) else one for one in salt]
    if salt is not None and not isinstance(salt, str):
        return salt
    if accuracy.is_own and not (salt or "").startswith(_MARK):
        return salt
    return f"{_MARK}{accuracy.spec};{salt or ''}"


def accuracy_of(salt: str | None, config: LeanKVConfig) -> Accuracy:
    """The accuracy that :func:`salted` put into a salt; the server's own where there is none, or none that can be."""
    spec = salt[len(_MARK) :].partition(";")[0] if salt and salt.startswith(_MARK) else ""
    return _from_spec(spec, config)


@lru_cache(maxsize=256)
def _from_spec(spec: str, config: LeanKVConfig) -> Accuracy:
    own = _accuracy(None, None, config)
    if not spec or spec in NAMED:
        return _accuracy(*NAMED[spec], config) if spec else own
    try:
        high, low = (float(number) if number else None for number in spec.split(","))
        accuracy = _accuracy(high, low, config)
        check_thresholds(accuracy.high, accuracy.low, config.significance)
    except (ValueError, LeanKVError):
        return own
    return accuracy


def _accuracy(high: Thresholds | None, low: Thresholds | None, config: LeanKVConfig) -> Accuracy:
    own = (config.alpha_high, config.alpha_low)
    pair = _effective((high, low), own)
    # Without significance every token scores 0, which no threshold but a negative one tells apart.
    if pair == own or (config.significance == "none" and isinstance(pair[0], float) and pair[0] >= 0 == pair[1]):
        return Accuracy("", *own)
    for name, named in NAMED.items():
        if pair == _effective(named, own):
            return Accuracy(name, *pair)
    return Accuracy(",".join(repr(value) if isinstance(value, float) else "" for value in pair), *pair)


def _effective(
    pair: tuple[Thresholds | None, Thresholds | None], own: tuple[Thresholds, Thresholds]
) -> tuple[Thresholds, Thresholds]:
    return (own[0] if pair[0] is None else pair[0], own[1] if pair[1] is None else pair[1])


def _is_number(value: Any) -> bool:
    # true is not a number here, and whole numbers may be beyond any float.
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)


def _say(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:55] + "[...]"
