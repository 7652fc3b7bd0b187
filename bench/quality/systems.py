"""What is compared: the exact 16-bit cache, SGLang's 8-bit one, and ours under a name, a form or a profile file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bench.quality.fp8 import DTYPES, Fp8Cache
from leankv_sglang.compression.profile import find_profile, shipped_profile
from leankv_sglang.compression.request_params import named
from leankv_sglang.compression.thresholds import threshold_table
from leankv_sglang.config import Alphas, LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.shape import CacheShape
from leankv_sglang.offline.caches import Cache
from leankv_sglang.offline.packed import PackedModel

FORMS: dict[str, LeanKVConfig] = {
    "all k8v8": LeanKVConfig("k8v8", "k8v8"),
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
_NOT_CONTENT = ("kernels", "profile", "demote", "match", "points", *(f"alpha_{tier}" for tier in Alphas._fields))


@dataclass(frozen=True)
class System:
    """One compressed cache.

    Args:
        name: as it was asked for.
        config: its formats, near pages, rotation and significance.
        alphas: thresholds; they stand in for the configuration's, since an accuracy may lie outside what its flags
            take.
        profile: name of the profile, or empty.
        fp8: SGLang's float8 that stands in for all of these, or empty.
    """

    name: str
    config: LeanKVConfig
    alphas: Alphas
    profile: str = ""
    fp8: str = ""

    @property
    def digest(self) -> str:
        """Hash of everything that decides what is computed; not of names."""
        if self.fp8:
            return self.fp8
        fields = {k: v for k, v in dataclasses.asdict(self.config).items() if k not in _NOT_CONTENT}
        text = json.dumps({**fields, "alphas": self.alphas}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def thresholds(self, layers: int, heads: int) -> Tensor:
        """Thresholds, float64 ``[layers, 3, heads]``."""
        return threshold_table(self.alphas, layers, heads)


def system(name: str, shape: CacheShape | None = None, near_pages: int | None = None, model: str = "") -> System:
    """The system of a name: a form, a point of the profile shipped for the model, a profile file (``FILE`` or
    ``FILE:POINT``), an accuracy a request can name, or a float8 of SGLang's.

    Args:
        shape: of the model; a profile made for another one is refused.
        near_pages: pages of near view instead of the system's own.
        model: the model's folder, for what is shipped for it.

    Raises:
        LeanKVError: for a name that stands for nothing, or a profile that cannot be.
    """
    if name in DTYPES:
        return System(name, LeanKVConfig(), LeanKVConfig().alphas, fp8=name)
    plain, profile = named(LeanKVConfig()), ""
    if name in FORMS:
        config, alphas = FORMS[name], FORMS[name].alphas
    elif ".json" in name or (model and shipped_profile(model)):
        loaded = find_profile(name, model)
        if shape is not None:
            loaded.check_model(shape, model)
        config, alphas, profile = loaded.config, loaded.config.alphas, loaded.config.profile or name
    elif name in plain:
        config, alphas, profile = LeanKVConfig(), plain[name], name
    else:
        known = ", ".join([RAW, ALL_FORMS, *DTYPES, *plain, *(repr(form) for form in FORMS)])
        raise LeanKVError(f"--systems takes {known} or the path of a profile (.json), not {name!r}.")
    if near_pages is not None:
        config = replace(config, near_pages=near_pages)
    return System(name, config, alphas, profile)


def systems(
    names: list[str], shape: CacheShape | None = None, near_pages: int | None = None, model: str = ""
) -> list[System]:
    """The systems of several names, ``forms`` standing for every form and ``raw`` for none: it always runs."""
    spread = [one for name in names for one in (FORMS if name == ALL_FORMS else [name]) if one != RAW]
    return [system(name, shape, near_pages, model) for name in dict.fromkeys(spread)]


def cache_of(model: PackedModel, system: System | None, page_size: int, rows: int, tokens: int) -> Cache[Any]:
    """An empty cache of a system, see ``PackedModel.cache``; None is the exact one."""
    if system is None:
        return model.cache(None, page_size, rows, tokens)
    if system.fp8:
        return Fp8Cache(model, rows, DTYPES[system.fp8])
    alphas = system.thresholds(model.shape.layers, model.shape.kv_heads)
    return model.cache(system.config, page_size, rows, tokens, alphas)
