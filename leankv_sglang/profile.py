"""Profiles: a small, versioned JSON file with thresholds per (layer, KV head) for one model."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leankv_sglang.config import LeanKVConfig, Thresholds, freeze_thresholds, parse_tiers
from leankv_sglang.errors import LeanKVError

VERSION = 1
_KEYS = {"leankv_profile", "name", "model", "tiers", "rotation", "significance", "window", "alpha_high", "alpha_low"}
_MODEL_KEYS = ("num_layers", "num_kv_heads", "head_dim")


@dataclass(frozen=True)
class Shape:
    """What of a model a profile depends on."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Profile:
    """A validated profile file."""

    shape: Shape
    config: LeanKVConfig

    def check_model(self, shape: Shape) -> None:
        """Raise :class:`LeanKVError` unless the profile was made for a model of this shape."""
        if shape != self.shape:
            raise LeanKVError(
                f"--leankv-profile {self.config.profile} was made for a model of {_say(self.shape)}, "
                f"this one has {_say(shape)}; calibrate it for this model or leave the flag out."
            )


def load_profile(path: str, kernels: str = "auto") -> Profile:
    """Read and validate a profile.

    Raises:
        LeanKVError: one sentence that names the file and what is wrong with it.
    """

    def broken(why: str) -> LeanKVError:
        return LeanKVError(f"--leankv-profile {path}: {why}.")

    try:
        data: Any = json.loads(Path(path).read_text())
    except OSError as error:
        raise broken(f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise broken(f"is not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("leankv_profile") != VERSION:
        raise broken(f'is not a LeanKV profile of version {VERSION} ("leankv_profile": {VERSION} is missing)')
    if unknown := sorted(set(data) - _KEYS):
        raise broken(f"has unknown fields: {', '.join(unknown)}")
    if missing := sorted(_KEYS - {"name"} - set(data)):
        raise broken(f"lacks the fields {', '.join(missing)}")
    model = data["model"]
    if not isinstance(model, dict) or any(type(model.get(k)) is not int or model[k] < 1 for k in _MODEL_KEYS):
        raise broken(f'"model" must give {", ".join(_MODEL_KEYS)} as positive whole numbers')
    shape = Shape(*(model[k] for k in _MODEL_KEYS))
    high, low = _thresholds(data, "alpha_high", shape, broken), _thresholds(data, "alpha_low", shape, broken)
    if type(data["window"]) is not int:
        raise broken('"window" must be a whole number of pages')
    try:
        tiers = parse_tiers(str(data["tiers"]))
        config = LeanKVConfig(
            *tiers,
            alpha_high=high,
            alpha_low=low,
            rotation=str(data["rotation"]),
            significance=str(data["significance"]),
            window=data["window"],
            kernels=kernels,
            profile=data.get("name") or Path(path).stem,
        )
    except LeanKVError as error:
        raise broken(f"asks for what cannot be ({str(error).rstrip('.')})") from error
    return Profile(shape, config)


def _thresholds(data: dict[str, Any], name: str, shape: Shape, broken: Any) -> Thresholds:
    value = data[name]
    rows = value if isinstance(value, list) else [[value]]
    if not all(isinstance(row, list) and all(map(_is_number, row)) for row in rows):
        raise broken(f'"{name}" must be a number or a list per layer of numbers per KV head')
    # NaN is not at least 0 either.
    if not all(x >= 0 for row in rows for x in row):
        raise broken(f'"{name}" must hold numbers of at least 0')
    if isinstance(value, list) and [len(row) for row in rows] != [shape.num_kv_heads] * shape.num_layers:
        raise broken(f'"{name}" must be {shape.num_layers} layers of {shape.num_kv_heads} KV heads')
    return freeze_thresholds(value)


def _is_number(x: Any) -> bool:
    # JSON gives Infinity (nothing is that high), NaN, and whole numbers beyond any float; true is not a number here.
    return isinstance(x, float) or (type(x) is int and abs(x) <= sys.float_info.max)


def _say(shape: Shape) -> str:
    return f"{shape.num_layers} layers, {shape.num_kv_heads} KV heads, head_dim {shape.head_dim}"
