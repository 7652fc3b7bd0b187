"""What is compared: the exact 16-bit cache, and ours under a name, a form or a profile file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from leankv_sglang.accuracy import NAMED
from leankv_sglang.config import LeanKVConfig, Thresholds
from leankv_sglang.errors import LeanKVError
from leankv_sglang.profile import Shape, load_profile

FORMS: dict[str, LeanKVConfig] = {
    "all k8v4": LeanKVConfig("k8v4", "k8v4"),
    "k8v4,k4v2, a_h 1": LeanKVConfig(),
    "k8v4,k4v2, a_h 2": LeanKVConfig(alpha_high=2.0),
    "all k4v2, near page k8v4": LeanKVConfig(significance="none"),
    "all k4v2": LeanKVConfig("k4v2", "k4v2"),
    "all k4v2, not rotated": LeanKVConfig("k4v2", "k4v2", rotation="none"),
    "a_h 1, a_l 0.3 (pruned)": LeanKVConfig(alpha_low=0.3),
}
RAW = "raw"
ALL_FORMS = "forms"
# Neither changes what is computed.
_NOT_CONTENT = ("kernels", "profile", "demote", "match")


@dataclass(frozen=True)
class System:
    """One compressed cache.

    Args:
        name: as it was asked for.
        config: its formats, window, rotation and significance.
        high, low: thresholds; they stand in for the configuration's, since an accuracy may lie outside what its flags
            take.
        profile: name of the profile, or empty.
    """

    name: str
    config: LeanKVConfig
    high: Thresholds
    low: Thresholds
    profile: str = ""

    @property
    def digest(self) -> str:
        """Hash of everything that decides what is computed; not of names."""
        fields = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in _NOT_CONTENT}
        text = json.dumps({**fields, "alpha_high": self.high, "alpha_low": self.low}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def thresholds(self, layers: int, heads: int) -> tuple[Tensor, Tensor]:
        """High and low thresholds, float64 ``[layers, heads]``."""
        both = (torch.as_tensor(value, dtype=torch.float64) for value in (self.high, self.low))
        high, low = (value.expand(layers, heads).contiguous() for value in both)
        return high, low


def system(name: str, shape: Shape | None = None, window: int | None = None) -> System:
    """The system of a name: a form, a profile file (``.json``), or an accuracy a request can name.

    Args:
        shape: of the model; a profile made for another one is refused.
        window: pages of near view instead of the system's own.

    Raises:
        LeanKVError: for a name that stands for nothing, or a profile that cannot be.
    """
    if name in FORMS:
        config, profile = FORMS[name], ""
        high, low = config.alpha_high, config.alpha_low
    elif name.endswith(".json"):
        loaded = load_profile(name)
        if shape is not None:
            loaded.check_model(shape)
        config, profile = loaded.config, loaded.config.profile or Path(name).stem
        high, low = config.alpha_high, config.alpha_low
    elif name in NAMED:
        config, profile = LeanKVConfig(), name
        own = (config.alpha_high, config.alpha_low)
        high, low = (mine if asked is None else asked for asked, mine in zip(NAMED[name], own, strict=True))
    else:
        known = ", ".join([RAW, ALL_FORMS, *NAMED, *(repr(form) for form in FORMS)])
        raise LeanKVError(f"--systems takes {known} or the path of a profile (.json), not {name!r}.")
    if window is not None:
        config = replace(config, window=window)
    return System(name, config, high, low, profile)


def systems(names: list[str], shape: Shape | None = None, window: int | None = None) -> list[System]:
    """The systems of several names, ``forms`` standing for every form and ``raw`` for none: it always runs."""
    spread = [one for name in names for one in (FORMS if name == ALL_FORMS else [name]) if one != RAW]
    return [system(name, shape, window) for name in dict.fromkeys(spread)]
