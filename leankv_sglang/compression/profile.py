"""Profiles: a small, versioned JSON file with thresholds per (layer, KV head) for one model, at named points."""

from __future__ import annotations

import base64
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leankv_sglang.compression.fingerprint import fingerprint
from leankv_sglang.compression.significance.predictor import num_features
from leankv_sglang.config import PAGE_SIZES, Alphas, LeanKVConfig, Thresholds, freeze_thresholds, parse_tiers
from leankv_sglang.errors import LeanKVError

VERSION = 2
SHIPPED = Path(__file__).with_name("profiles")
"""Folder of the profiles that come with the package, one file a model."""
CALIBRATED_TOKENS = 4096
"""Tokens of the contexts that a calibration measures bytes of."""
DEFAULT_POINT = "balanced"
SERVED_POINT = "lossless"
"""What a server takes that was told nothing: nobody gets other answers than the model's without asking."""
NO_PROFILE = "none"
"""What ``--leankv-profile`` takes for no profile at all, whatever is shipped."""
_KEYS = {"leankv_profile", "model", "page_size", "tiers", "rotation", "significance", "near_pages", "points"}
_OPTIONAL = {"calibration", "predictor", "keep_first"}
_MODEL_KEYS = ("num_layers", "num_kv_heads", "head_dim")
_ALPHAS = tuple(f"alpha_{tier}" for tier in Alphas._fields)

Broken = Callable[[str], LeanKVError]


@dataclass(frozen=True)
class Shape:
    """What of a model the size of a profile's tables depends on."""

    num_layers: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True)
class Profile:
    """A validated profile file at one of its points.

    Args:
        shape, fingerprint: of the model it was calibrated for; the latter None where it is for any of that shape.
        page_size: tokens of a page, which the thresholds depend on.
        config: what the flags would say, with the point's thresholds.
    """

    shape: Shape
    fingerprint: str | None
    page_size: int
    config: LeanKVConfig

    def check_model(self, shape: Shape, folder: str | None = None) -> None:
        """Raise :class:`LeanKVError` unless the profile was made for a model of this shape, and for the weights in the
        folder, where one is given and it can be told."""
        advice = "calibrate one for this model (python -m leankv_sglang.calibrate) or leave the flag out."
        name = self.config.profile
        if shape != self.shape:
            raise LeanKVError(
                f"--leankv-profile {name} was made for a model of {_say(self.shape)}, "
                f"this one has {_say(shape)}; {advice}"
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


def find_profile(text: str, model: str, kernels: str = "auto") -> Profile:
    """The profile that ``--leankv-profile`` names: a file, ``FILE:POINT``, or a point of the one shipped for a model.

    Args:
        text: what the flag says.
        model: the model's folder.
        kernels: backend of the ops, for the configuration.

    Raises:
        LeanKVError: one sentence that says what is wrong with the file, or what there is for this model.
    """
    path, _, point = text.rpartition(":") if Path(text.rpartition(":")[0]).is_file() else (text, "", "")
    if "/" in text or "." in text:
        return load_profile(path, point or None, kernels)
    shipped = shipped_profile(model)
    if shipped is None:
        raise LeanKVError(
            f"--leankv-profile {text} is neither a file nor is a profile shipped for this model; calibrate one: "
            f"python -m leankv_sglang.calibrate --model {model}."
        )
    return load_profile(str(shipped), text, kernels)


def chosen_profile(text: str | None, model: str, page_size: int | None, kernels: str = "auto") -> Profile | None:
    """The profile that a server takes; where nothing was said about compression, the shipped one's lossless point.

    Args:
        text: what ``--leankv-profile`` says, if it was given.
        model: the model's folder.
        page_size: of the server, where it was said.
        kernels: backend of the ops, for the configuration.

    Returns:
        None where none was asked for, or nothing was said and none is shipped for this model and page size.

    Raises:
        LeanKVError: as :func:`find_profile`.
    """
    if text == NO_PROFILE:
        return None
    if text is not None:
        return find_profile(text, model, kernels)
    shipped = shipped_profile(model)
    if shipped is None:
        return None
    profile = load_profile(str(shipped), SERVED_POINT, kernels)
    return profile if page_size in (None, profile.page_size) else None


def shipped_profile(model: str) -> Path | None:
    """The file that comes with the package for the weights in a folder, if there is one."""
    mark = fingerprint(model)
    return _shipped().get(mark) if mark else None


@cache
def _shipped() -> dict[str, Path]:
    return {json.loads(path.read_text())["model"]["fingerprint"]: path for path in sorted(SHIPPED.glob("*.json"))}


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
    try:
        data: Any = json.loads(Path(path).read_text())
    except OSError as error:
        raise broken(f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise broken(f"is not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("leankv_profile") != VERSION:
        raise broken(f'is not a LeanKV profile of version {VERSION} ("leankv_profile": {VERSION} is missing)')
    data = current_names(data)
    if unknown := sorted(set(data) - _KEYS - _OPTIONAL):
        raise broken(f"has unknown fields: {', '.join(unknown)}")
    if missing := sorted(_KEYS - set(data)):
        raise broken(f"lacks the fields {', '.join(missing)}")
    model = data["model"]
    if not isinstance(model, dict) or any(type(model.get(k)) is not int or model[k] < 1 for k in _MODEL_KEYS):
        raise broken(f'"model" must give {", ".join(_MODEL_KEYS)} as positive whole numbers')
    shape = Shape(*(model[k] for k in _MODEL_KEYS))
    pages, sizes = "a whole number of pages", f"one of {_list(PAGE_SIZES)}"
    data.setdefault("keep_first", 0)
    for name, allowed in (("near_pages", pages), ("keep_first", pages), ("page_size", sizes)):
        if type(data[name]) is not int or (name == "page_size" and data[name] not in PAGE_SIZES):
            raise broken(f'"{name}" must be {allowed}')
    points = _points(data["points"], shape, broken)
    chosen = point or (DEFAULT_POINT if DEFAULT_POINT in points else next(iter(points)))
    if chosen not in points:
        raise broken(f"has no point {chosen!r}, it has {', '.join(points)}")
    try:
        high, mid, low = parse_tiers(str(data["tiers"]))
        config = LeanKVConfig(
            high=high,
            mid=mid,
            low=low,
            alpha_high=points[chosen].high,
            alpha_mid=points[chosen].mid,
            alpha_low=points[chosen].low,
            rotation=str(data["rotation"]),
            significance=str(data["significance"]),
            near_pages=data["near_pages"],
            keep_first=data["keep_first"],
            kernels=kernels,
            profile=f"{model.get('name') or Path(path).stem} {chosen}",
            points=tuple(points.items()),
            predictor=str(Path(path).resolve()) if "predictor" in data else None,
        )
        if config.predictor:
            _predictor(data, shape, broken)
    except LeanKVError as error:
        raise broken(f"asks for what cannot be ({str(error).rstrip('.')})") from error
    mark = model.get("fingerprint")
    return Profile(shape, mark if isinstance(mark, str) else None, data["page_size"], config)


def current_names(data: dict[str, Any]) -> dict[str, Any]:
    """A profile's fields as they are called now; files of earlier releases call ``near_pages`` ``window``."""
    return {"near_pages" if name == "window" else name: value for name, value in data.items()}


def measured_ratios(path: Path) -> dict[str, float]:
    """What a shipped profile's points were measured to save, by name: the bytes of 16-bit contexts of
    ``CALIBRATED_TOKENS`` over all of theirs."""
    return {name: float(point["measured"]["ratio"]) for name, point in json.loads(path.read_text())["points"].items()}


def read_predictor(path: str) -> Tensor:
    """The predictor's weights in a profile that has been loaded before, float64 ``[layers, KV heads, features]``.

    Raises:
        LeanKVError: where they are gone.
    """
    broken = _complaint(path)
    try:
        data = json.loads(Path(path).read_text())
        shape = Shape(*(data["model"][k] for k in _MODEL_KEYS))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise broken(f"cannot be read ({error})") from error
    return _predictor(data, shape, broken)


def pack_predictor(weights: Tensor) -> str:
    """Weights ``[layers, KV heads, features]`` as a profile has them: float16, base64."""
    return base64.b64encode(weights.to(torch.float16).numpy().tobytes()).decode()


def _complaint(path: str) -> Broken:
    return lambda why: LeanKVError(f"--leankv-profile {path}: {why}.")


def _predictor(data: dict[str, Any], shape: Shape, broken: Broken) -> Tensor:
    size = (shape.num_layers, shape.num_kv_heads, num_features(shape.head_dim))
    try:
        raw = bytearray(base64.b64decode(data["predictor"], validate=True))
    except (ValueError, TypeError, KeyError) as error:
        raise broken('"predictor" must be text in base64') from error
    if len(raw) != 2 * math.prod(size):
        raise broken(f'"predictor" must hold {size[2]} half-precision numbers for each of {_say(shape)}')
    weights = torch.frombuffer(raw, dtype=torch.float16).to(torch.float64).view(size)
    if not bool(weights.isfinite().all()):
        raise broken('"predictor" must hold finite numbers')
    return weights


def _points(data: Any, shape: Shape, broken: Broken) -> dict[str, Alphas]:
    named = isinstance(data, dict) and data and all(isinstance(point, dict) for point in data.values())
    if not named or any(not name.isidentifier() for name in data):
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


def _thresholds(value: Any, name: str, shape: Shape, broken: Broken) -> Thresholds:
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


def _list(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


def _say(shape: Shape) -> str:
    return f"{shape.num_layers} layers, {shape.num_kv_heads} KV heads, head_dim {shape.head_dim}"
