"""A calibration from end to end: windows, gradients, predictor, costs, searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from leankv_kernels import RecordLayout
from leankv_sglang.calibrate.capture import Layer, capture
from leankv_sglang.calibrate.fit import fit
from leankv_sglang.calibrate.measure import Measured, Yardstick
from leankv_sglang.calibrate.options import options
from leankv_sglang.calibrate.search import Found, Space, search
from leankv_sglang.calibrate.sensitivity import full_pages, layer_costs
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.offline.packed import PackedModel
from leankv_sglang.significance import STRATEGIES, Predictor, Significance
from leankv_sglang.sizing import make_layout

DRAWS = 3
"""Backward passes of a window."""
SKIP = 128
"""First tokens of a window whose predictions do not count."""


class Target(NamedTuple):
    """What a point is to reach on the calibration windows: a KL in nats, or a ratio of bytes."""

    name: str
    kl: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Setting:
    """What is calibrated.

    Args:
        config: tiers, rotation, significance and window.
        page_size: tokens of a page.
        seed: of draws.
    """

    config: LeanKVConfig
    page_size: int
    seed: int = 0


class Calibrated(NamedTuple):
    """The result: thresholds and figures by name, and the predictor's weights ``[layers, H, F]`` if there is one."""

    points: dict[str, Found]
    predictor: Tensor | None
    space: Space


def explore(
    model: Any, windows: Sequence[Tensor], setting: Setting, layout: RecordLayout
) -> tuple[Space, Tensor | None]:
    """Everything that needs gradients: the significance of tokens, and every option's estimated cost.

    Args:
        model: a Hugging Face causal model in float32.
        windows: int64 ``[T]`` each.
        setting: what is calibrated.
        layout: of the records.
    """
    choices = options(layout.mid is not None)
    page, config = setting.page_size, setting.config
    seen = [
        capture(model, ids, DRAWS, SKIP, setting.seed + i)
        for i, ids in enumerate(tqdm(windows, desc="gradients", unit="window"))
    ]
    costs, found, weights = [], [], []
    count = sum(len(ids) - SKIP - 1 for ids in windows)
    for layer in tqdm(range(len(seen[0])), desc="options", unit="layer"):
        of_layer: list[Layer] = [window[layer] for window in seen]
        strategy: Significance
        if config.significance == Predictor.name:
            weights.append(fit(of_layer, config.window, page))
            strategy = Predictor(weights[-1][None])
        else:
            strategy = STRATEGIES[config.significance]()
        worth = [strategy(0, full_pages(one, page)).transpose(0, 1).flatten(1) for one in of_layer]
        cost = sum(
            layer_costs(one, significance, choices, config, layout, SKIP)
            for one, significance in zip(of_layer, worth, strict=True)
        )
        assert isinstance(cost, Tensor)
        costs.append(cost / count)
        found.append(torch.cat(worth, 1))
    space = Space(choices, torch.stack(costs), torch.stack(found), layout)
    return space, torch.stack(weights) if weights else None


def find_points(
    space: Space, yardstick: Yardstick, targets: Sequence[Target], report: Callable[[Target, Found], None]
) -> dict[str, Found]:
    """Search the thresholds of every target."""
    points = {}
    for target in targets:

        def good(measured: Measured, target: Target = target) -> bool:
            return measured.kl <= target.kl if target.kl is not None else measured.ratio >= (target.ratio or 0.0)

        def say(found: Found, target: Target = target) -> None:
            report(target, found)

        # Where much is pruned costs add up to more than their sum.
        first = 0.4 * target.kl if target.kl is not None else _kl_at_ratio(space, target.ratio or 1.0)
        points[target.name] = search(space, yardstick.measure, good, first, target.kl is not None, say)
    return points


def _kl_at_ratio(space: Space, ratio: float) -> float:
    """Estimated KL at a ratio that counts open page, headers and window too."""
    raw = 4 * space.layout.head_dim
    wanted = max(raw / ratio - 0.05 * raw, 1.0)
    price = space.price_of(-wanted, lambda choice: -space.bytes_of(choice))
    return space.estimated(space.choose(price))


def calibrate(
    name: str,
    windows: Sequence[Tensor],
    measured_on: Sequence[Tensor],
    setting: Setting,
    targets: Sequence[Target],
    report: Callable[[Target, Found], None],
    save: Callable[[Tensor | None], str | None],
) -> Calibrated:
    """Calibrate a model.

    Args:
        name: folder or catalog name of the model.
        windows: for gradients, in float32.
        measured_on: for the search, as served.
        setting: what is calibrated.
        targets: the points to find.
        report: told of every measurement.
        save: puts the predictor where a configuration can name it, and names it.
    """
    from transformers import AutoModelForCausalLM

    from leankv_sglang.models import resolve_model_path

    exact = AutoModelForCausalLM.from_pretrained(resolve_model_path(name), dtype=torch.float32).eval()
    shape = exact.config
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    layout = make_layout(setting.config, setting.page_size, shape.num_key_value_heads, head_dim)
    space, weights = explore(exact, windows, setting, layout)
    del exact
    config = replace(setting.config, predictor=save(weights))
    served, _ = PackedModel.load(name)
    with torch.inference_mode():
        yardstick = Yardstick(served, list(measured_on), config, setting.page_size)
        return Calibrated(find_points(space, yardstick, targets, report), weights, space)
