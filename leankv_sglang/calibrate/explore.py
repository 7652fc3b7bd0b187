"""Everything of a calibration that needs gradients, kept on disk: another target then only needs the search."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from leankv_kernels import RecordLayout
from leankv_sglang.calibrate.capture import Layer, capture
from leankv_sglang.calibrate.fit import fit
from leankv_sglang.calibrate.options import Option, options
from leankv_sglang.calibrate.search import Space
from leankv_sglang.calibrate.sensitivity import full_pages, layer_costs
from leankv_sglang.compression.build import layout_for
from leankv_sglang.compression.fingerprint import fingerprint
from leankv_sglang.compression.significance import STRATEGIES, Predictor, Significance
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.shape import read_shape

DRAWS = 3
"""Backward passes of a window."""
SKIP = 128
"""First tokens of a window whose predictions do not count."""
_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCES = (
    "calibrate/capture.py",
    "calibrate/fit.py",
    "calibrate/sensitivity.py",
    "compression/significance/predictor.py",
)


@dataclass(frozen=True)
class Setting:
    """What is calibrated.

    Args:
        config: tiers, rotation, significance and near pages.
        page_size: tokens of a page.
        prune: whether tokens may be pruned.
        seed: of draws.
    """

    config: LeanKVConfig
    page_size: int
    prune: bool = True
    seed: int = 0

    @property
    def choices(self) -> list[Option]:
        """What every head may choose from."""
        return options(self.config.mid is not None, self.prune)


@dataclass
class Explored:
    """What gradients told.

    Args:
        space: every option's estimated cost.
        predictor: weights ``[layers, H, F]``, where significance is predicted.
    """

    space: Space
    predictor: Tensor | None

    def strategy(self, config: LeanKVConfig, device: torch.device) -> Significance:
        """The significance that the costs were estimated with."""
        return _strategy(config, self.predictor, device)


def _strategy(config: LeanKVConfig, predictor: Tensor | None, device: torch.device) -> Significance:
    return STRATEGIES[config.significance]() if predictor is None else Predictor(predictor.to(device))


def explore(model: Callable[[], Any], folder: str, windows: Sequence[Tensor], setting: Setting, kept: Path) -> Explored:
    """Estimate what every option costs every head, or read it where this was done before.

    Args:
        model: loads the Hugging Face causal model in float32.
        folder: the model's.
        windows: int64 ``[T]`` each.
        setting: what is calibrated.
        kept: folder of finished explorations.
    """
    shape = read_shape(folder)
    layout = layout_for(setting.config, setting.page_size, shape)
    digest = _digest(folder, windows, setting)
    file = kept / f"{digest}.pt"
    if digest and file.exists():
        tqdm.write(f"gradients and options: as kept in {file}")
        cost, significance, predictor = torch.load(file, weights_only=True)
    else:
        cost, significance, predictor = _explore(model(), windows, setting, layout, shape.layers)
        if digest:
            kept.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part")
            torch.save((cost, significance, predictor), part)
            part.replace(file)
    return Explored(Space(setting.choices, cost, significance, layout), predictor)


def _explore(
    model: Any, windows: Sequence[Tensor], setting: Setting, layout: RecordLayout, layers: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    page, config, choices = setting.page_size, setting.config, setting.choices
    seen = [
        capture(model, ids, DRAWS, SKIP, setting.seed + i)
        for i, ids in enumerate(tqdm(windows, desc="gradients", unit="window"))
    ]
    if len(seen[0]) != layers:
        raise LeanKVError(
            f"This model cannot be calibrated: transformers' class of it hands over the attention of {len(seen[0])} "
            f"layers, and {layers} have no sliding window."
        )
    costs, found, weights = [], [], []
    count = sum(len(ids) - SKIP - 1 for ids in windows)
    for layer in tqdm(range(len(seen[0])), desc="options", unit="layer"):
        of_layer: list[Layer] = [window[layer].to(model.device) for window in seen]
        pages = [full_pages(one, page) for one in of_layer]
        if config.significance == Predictor.name:
            weights.append(fit(of_layer, pages, config.near_pages).cpu())
        strategy = _strategy(config, weights[-1][None] if weights else None, model.device)
        worth = [strategy(0, full).transpose(0, 1).flatten(1) for full in pages]
        parts = [
            layer_costs(one, significance, choices, config, layout, SKIP)
            for one, significance in zip(of_layer, worth, strict=True)
        ]
        costs.append(torch.stack(parts).sum(0) / count)
        found.append(torch.cat(worth, 1).cpu())
    return torch.stack(costs), torch.stack(found), torch.stack(weights) if weights else None


def _digest(folder: str, windows: Sequence[Tensor], setting: Setting) -> str:
    """Hash of everything that decides what is explored; empty where the model's weights have no fingerprint."""
    mark = fingerprint(folder)
    if mark is None:
        return ""
    config = dataclasses.asdict(setting.config)
    what: dict[str, Any] = {
        name: config[name] for name in ("high", "mid", "low", "rotation", "significance", "near_pages")
    }
    what |= {"page_size": setting.page_size, "seed": setting.seed, "choices": setting.choices}
    what |= {"model": mark, "shape": dataclasses.astuple(read_shape(folder))}
    digest = hashlib.sha256(json.dumps(what).encode())
    for ids in windows:
        digest.update(ids.to(torch.int64).numpy().tobytes())
    for name in _SOURCES:
        digest.update((_PACKAGE / name).read_bytes())
    return digest.hexdigest()[:16]
