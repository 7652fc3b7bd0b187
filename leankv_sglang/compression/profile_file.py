"""Profile files: a small, versioned JSON with thresholds per (layer, KV head) for one model, at named points."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leankv_kernels.reference.tiers import num_features
from leankv_sglang.compression.fingerprint import fingerprint
from leankv_sglang.config import PAGE_SIZES, Alphas, LeanKVConfig, Thresholds, freeze_thresholds, parse_tiers
from leankv_sglang.errors import LeanKVError
from leankv_sglang.json_file import Broken, parse_json, read_file
from leankv_sglang.models.shape import MOST, CacheShape

VERSION = 2
CALIBRATED_TOKENS = 4096
"""Tokens of the contexts that a calibration measures bytes of."""
DEFAULT_POINT = "balanced"
_KEYS = {"leankv_profile", "model", "page_size", "tiers", "rotation", "significance", "near_pages", "points"}
_OPTIONAL = {"calibration", "predictor", "keep_first"}
_FORMER_FIELDS, _FORMER_POINTS = {"window": "near_pages"}, {"lossless": "near-lossless"}
_MODEL_KEYS, _VALUES = ("num_layers", "num_kv_heads", "head_dim"), "v_head_dim"
_ALPHAS = tuple(f"alpha_{tier}" for tier in Alphas._fields)


@dataclass(frozen=True)
class Profile:
    """A validated profile file at one of its points.

    Args:
        shape, fingerprint: of the model it was calibrated for; the latter None where it is for any of that shape.
        page_size: tokens of a page, which the thresholds depend on.
        config: what the flags would say, with the point's thresholds.
    """

    shape: CacheShape
    fingerprint: str | None
    page_size: int
    config: LeanKVConfig

    def check_model(self, shape: CacheShape, folder: str | None = None) -> None:
        """Raise :class:`LeanKVError` unless the profile was made for a model of this shape, and for the weights in the
        folder, where one is given and it can be told."""
        advice = "calibrate one for this model (python -m leankv_sglang.calibrate) or leave the flag out."
        name = self.config.profile
        if shape != self.shape:
            raise LeanKVError(
                f"--leankv-profile {name} was made for a model of {self.shape.describe()}, "
                f"this one has {shape.describe()}; {advice}"
            )
        found = fingerprint(folder) if folder and self.fingerprint else None
        if found and found != self.fingerprint:
            raise LeanKVError(f"--leankv-profile {name} was made for other weights of the same shape; {advice}")

    def check_page_size(self, page_size: int) -> None:
        """Raise :class:`LeanKVError` unless the profile was made for pages of this size."""
        if page_size != self.page_size:
            raise LeanKVError(
                f"--leankv-profile {self.config.profile} was made for --page-size {self.page_size}, not {page_size}; "
                "leave --page-size out or calibrate for it (python -m leankv_sglang.calibrate --page-size)."
            )


def load_profile(path: str, point: str | None = None, kernels: str = "auto") -> Profile:
    """Read and validate a profile file.

    Args:
        path: the file.
        point: name of the thresholds to use; by default ``balanced``, or the only one there is.
        kernels: backend of the ops, for the configuration.

    Raises:
        LeanKVError: one sentence that names the file and what is wrong with it.
    """
    broken = _complaint(path)
    raw = read_file(path, broken)
    data = parse_json(raw, broken)
    if not isinstance(data, dict) or data.get("leankv_profile") != VERSION:
        raise broken(f'is not a LeanKV profile of version {VERSION} ("leankv_profile": {VERSION} is missing)')
    data = current_names(data)
    if unknown := sorted(set(data) - _KEYS - _OPTIONAL):
        raise broken(f"has unknown fields: {', '.join(unknown)}")
    if missing := sorted(_KEYS - set(data)):
        raise broken(f"lacks the fields {', '.join(missing)}")
    model = data["model"]
    if not isinstance(model, dict) or any(not _is_size(model.get(k)) for k in _MODEL_KEYS):
        raise broken(f'"model" must give {", ".join(_MODEL_KEYS)} as positive whole numbers of at most {MOST:,}')
    if not _is_size(model.get(_VALUES, 1)):
        raise broken(f'"{_VALUES}" of "model" must be a positive whole number of at most {MOST:,}')
    shape = _shape(model)
    # They are printed and compared.
    for name, text in (("name", model.get("name")), ("fingerprint", mark := model.get("fingerprint"))):
        if text is not None and not (isinstance(text, str) and text.isprintable()):
            raise broken(f'"{name}" of "model" must be a line of text')
    for name in ("tiers", "rotation", "significance"):
        if not isinstance(data[name], str):
            raise broken(f'"{name}" must be text such as --leankv-{name} takes')
    pages, sizes = "a whole number of pages", f"one of {_list(PAGE_SIZES)}"
    data.setdefault("keep_first", 0)
    for name, allowed in (("near_pages", pages), ("keep_first", pages), ("page_size", sizes)):
        if type(data[name]) is not int or (name == "page_size" and data[name] not in PAGE_SIZES):
            raise broken(f'"{name}" must be {allowed}')
    points = _points(data["points"], shape, broken)
    chosen = current_point(point) if point else (DEFAULT_POINT if DEFAULT_POINT in points else next(iter(points)))
    if chosen not in points:
        raise broken(f"has no point {chosen!r}; it has {', '.join(points)}")
    try:
        high, mid, low = parse_tiers(data["tiers"])
        config = LeanKVConfig(
            high=high,
            mid=mid,
            low=low,
            alpha_high=points[chosen].high,
            alpha_mid=points[chosen].mid,
            alpha_low=points[chosen].low,
            rotation=data["rotation"],
            significance=data["significance"],
            near_pages=data["near_pages"],
            keep_first=data["keep_first"],
            kernels=kernels,
            profile=f"{model.get('name') or Path(path).stem} {chosen}",
            points=tuple(points.items()),
            predictor=str(Path(path).resolve()) if "predictor" in data else None,
            predictor_digest=hashlib.sha256(raw).hexdigest() if "predictor" in data else None,
        )
        if config.predictor:
            _predictor(data, shape, broken)
    except LeanKVError as error:
        raise broken(f"asks for what cannot be ({str(error).rstrip('.')})") from error
    return Profile(shape, mark, data["page_size"], config)


def current_names(data: dict[str, Any]) -> dict[str, Any]:
    """A profile's fields and points as they are called now; files of earlier releases have others."""
    data = {_FORMER_FIELDS.get(name, name): value for name, value in data.items()}
    if isinstance(points := data.get("points"), dict):
        data["points"] = {current_point(name): value for name, value in points.items()}
    return data


def current_point(name: str) -> str:
    """What a point is called now."""
    return _FORMER_POINTS.get(name, name)


def measured_ratios(path: Path) -> dict[str, float]:
    """What a shipped profile's points were measured to save, by name: the bytes of 16-bit contexts of
    ``CALIBRATED_TOKENS`` over all of theirs."""
    points = current_names(json.loads(path.read_text()))["points"]
    return {name: float(point["measured"]["ratio"]) for name, point in points.items()}


def read_predictor(path: str, digest: str | None = None) -> Tensor:
    """The predictor's weights in a profile that has been loaded before, float64 ``[layers, KV heads, features]``.

    Args:
        path: the profile.
        digest: SHA-256 of the file as it was loaded, in hex, if it has to be that.

    Raises:
        LeanKVError: where they are gone, or others.
    """
    broken = _complaint(path)
    raw = read_file(path, broken)
    if digest is not None and hashlib.sha256(raw).hexdigest() != digest:
        raise broken("has been changed since the server started; start it again")
    data = parse_json(raw, broken)
    try:
        shape = _shape(data["model"])
    except (KeyError, TypeError) as error:
        raise broken(f"cannot be read ({error})") from error
    return _predictor(data, shape, broken)


def pack_predictor(weights: Tensor) -> str:
    """Weights ``[layers, KV heads, features]`` as a profile has them: float16, base64."""
    return base64.b64encode(weights.to(torch.float16).numpy().tobytes()).decode()


def _shape(model: dict[str, Any]) -> CacheShape:
    layers, heads, head_dim = (model[k] for k in _MODEL_KEYS)
    return CacheShape(layers, heads, head_dim, model.get(_VALUES, 0))


def _complaint(path: str) -> Broken:
    return lambda why: LeanKVError(f"--leankv-profile {path}: {why}.")


def _predictor(data: dict[str, Any], shape: CacheShape, broken: Broken) -> Tensor:
    size = (shape.layers, shape.kv_heads, num_features(shape.head_dim, shape.v_head_dim))
    try:
        raw = bytearray(base64.b64decode(data["predictor"], validate=True))
    except (ValueError, TypeError, KeyError) as error:
        raise broken('"predictor" must be text in base64') from error
    if len(raw) != 2 * math.prod(size):
        raise broken(f'"predictor" must hold {size[2]} half-precision numbers for each of {shape.describe()}')
    weights = torch.frombuffer(raw, dtype=torch.float16).to(torch.float64).view(size)
    if not bool(weights.isfinite().all()):
        raise broken('"predictor" must hold finite numbers; calibrate it anew')
    return weights


def _points(data: Any, shape: CacheShape, broken: Broken) -> dict[str, Alphas]:
    named = isinstance(data, dict) and data and all(isinstance(point, dict) for point in data.values())
    if not named or any(not name.replace("-", "_").isidentifier() for name in data):
        raise broken('"points" must give thresholds by name')
    defaults = Alphas()._asdict()
    points = {}
    for name, point in data.items():
        missing = [alpha for alpha in ("alpha_high", "alpha_low") if alpha not in point]
        if missing:
            raise broken(f"point {name} lacks {', '.join(missing)}")
        tables = (point.get(alpha, defaults[alpha.removeprefix("alpha_")]) for alpha in _ALPHAS)
        points[name] = Alphas(*(_thresholds(t, a, shape, broken) for t, a in zip(tables, _ALPHAS, strict=True)))
    return points


def _thresholds(value: Any, name: str, shape: CacheShape, broken: Broken) -> Thresholds:
    rows = value if isinstance(value, list) else [[value]]
    if not all(isinstance(row, list) and all(map(_is_number, row)) for row in rows):
        raise broken(f'"{name}" must be a number or a list per layer of numbers per KV head')
    # NaN is not at least 0 either.
    if not all(x >= 0 for row in rows for x in row):
        raise broken(f'"{name}" must hold numbers of at least 0')
    if isinstance(value, list) and [len(row) for row in rows] != [shape.kv_heads] * shape.layers:
        raise broken(f'"{name}" must be {shape.layers} layers of {shape.kv_heads} KV heads')
    return freeze_thresholds(value)


def _is_size(x: Any) -> bool:
    return type(x) is int and 0 < x <= MOST


def _is_number(x: Any) -> bool:
    # JSON gives Infinity (nothing is that high), NaN, and whole numbers beyond any float; true is not a number here.
    return isinstance(x, float) or (type(x) is int and abs(x) <= sys.float_info.max)


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))
