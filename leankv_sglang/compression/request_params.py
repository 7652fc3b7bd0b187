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

from leankv_patches.request_ranges import say
from leankv_sglang.compression.profile_file import current_point
from leankv_sglang.config import Alphas, LeanKVConfig, check_thresholds
from leankv_sglang.errors import LeanKVError

FIELD = "leankv"
"""Name of the field in requests and responses."""
BALANCED = "balanced"
"""What the server's own accuracy is called where it comes from no profile."""
_MARK = "leankv:"
_LONGEST_SPEC = 200
_THRESHOLDS = tuple(f"alpha_{tier}" for tier in Alphas._fields)


def named(config: LeanKVConfig) -> dict[str, Alphas]:
    """The accuracies that a request may name: the profile's points, or all high, the server's own and all low."""
    if config.points:
        return dict(config.points)
    # Significance is never negative, so all of it is above -1; above 0 it is not.
    return {"near-lossless": Alphas(-1.0), BALANCED: config.alphas, "small": Alphas(math.inf)}


@dataclass(frozen=True)
class Accuracy:
    """Effective thresholds; equal ones have equal ``spec``, which is what the radix key holds."""

    spec: str
    alphas: Alphas
    name: str | None = None

    @property
    def is_own(self) -> bool:
        """Whether these are the server's own thresholds."""
        return not self.spec

    def describe(self) -> dict[str, Any]:
        """As a request would ask for it; a threshold that is a profile's table per head is left out."""
        if self.name:
            return {"profile": self.name}
        given = zip(_THRESHOLDS, self.alphas, strict=True)
        return {name: value for name, value in given if isinstance(value, float) and value != math.inf}


def resolve(field: Any, config: LeanKVConfig) -> Accuracy:
    """The accuracy that a request's field asks for; None is the server's own.

    Raises:
        LeanKVError: one sentence saying what is wrong with the field.
    """
    if field is None:
        return _accuracy(config.alphas, config)
    names = ", ".join(named(config))
    form = f'{{"profile": name}} with a name of {names}, or {{"alpha_high": number, "alpha_low": number}}'
    if not isinstance(field, dict) or not field:
        raise LeanKVError(f"{FIELD} takes {form}, not {say(field, 60)}.")
    if unknown := [name for name in field if name not in ("profile", *_THRESHOLDS)]:
        raise LeanKVError(f"{FIELD} takes {form}; it has no field {say(unknown[0], 60)}.")
    if "profile" in field:
        if len(field) > 1:
            raise LeanKVError(f"{FIELD} takes a profile or thresholds, not both.")
        name = field["profile"]
        if not isinstance(name, str) or (point := current_point(name)) not in named(config):
            raise LeanKVError(f"{FIELD}.profile takes {names}, not {say(name, 60)}.")
        return _accuracy(named(config)[point], config)
    for name, value in field.items():
        if not _is_number(value):
            raise LeanKVError(f"{FIELD}.{name} is a number of at least 0, not {say(value, 60)}.")
    if config.significance != "attention":
        raise LeanKVError(
            f"{FIELD} takes thresholds where tokens are scored by attention, which this server does by "
            f'{config.significance}: name an accuracy instead, as in {{"profile": "{next(iter(named(config)))}"}}; '
            f"there are {names}."
        )
    # Adding 0 makes -0 and 0 one.
    given = {name.removeprefix("alpha_"): float(value) + 0.0 for name, value in field.items()}
    if "mid" in given and not config.mid:
        raise LeanKVError(f"{FIELD}.alpha_mid needs a server with a middle tier; this one has {config.tiers}.")
    accuracy = _accuracy(config.alphas._replace(**given), config)
    check_thresholds(accuracy.alphas, config.significance, f"{FIELD}.alpha_{{}}")
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
    spec, _ = _parts(salt)
    if len(spec) > _LONGEST_SPEC and spec not in named(config):
        spec = ""  # not ours, and it would stay in the cache below
    return _from_spec(spec, config)


def user_salt(salt: str | None) -> str | None:
    """The salt that :func:`salted` put an accuracy into; None where there was none."""
    return _parts(salt)[1] or None


def _parts(salt: str | None) -> tuple[str, str]:
    """The spec of an accuracy that a salt begins with, and the rest of it."""
    if not salt or not salt.startswith(_MARK):
        return "", salt or ""
    spec, _, rest = salt[len(_MARK) :].partition(";")
    return spec, rest


@lru_cache(maxsize=256)
def _from_spec(spec: str, config: LeanKVConfig) -> Accuracy:
    own = _accuracy(config.alphas, config)
    if not spec:
        return own
    if spec in named(config):
        return _accuracy(named(config)[spec], config)
    try:
        numbers = zip(Alphas._fields, spec.split(","), strict=True)
        accuracy = _accuracy(config.alphas._replace(**{tier: float(n) for tier, n in numbers if n}), config)
        check_thresholds(accuracy.alphas, config.significance)
    except (ValueError, LeanKVError):
        return own
    return accuracy


def _accuracy(alphas: Alphas, config: LeanKVConfig) -> Accuracy:
    own = config.alphas
    # Without significance every token scores 0, which no threshold but a negative one tells apart.
    alike = config.significance == "none" and all(isinstance(x, float) and x >= 0 for x in alphas) and not alphas.low
    name = next((name for name, point in named(config).items() if point == (own if alike else alphas)), None)
    if alphas == own or alike:
        return Accuracy("", own, name)
    return Accuracy(name or ",".join(repr(x) if isinstance(x, float) else "" for x in alphas), alphas, name)


def _is_number(value: Any) -> bool:
    # true is not a number here, and whole numbers may be beyond any float.
    return isinstance(value, float) or (type(value) is int and abs(value) <= sys.float_info.max)
