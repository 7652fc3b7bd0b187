"""A calibration from end to end: windows, gradients, predictor, costs, searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leankv_sglang.calibrate.explore import Setting, explore
from leankv_sglang.calibrate.measure import Yardstick
from leankv_sglang.calibrate.search import Found, Target, search
from leankv_sglang.offline.packed import PackedModel


class Calibrated(NamedTuple):
    """The result: thresholds and figures by name, and the predictor's weights ``[layers, H, F]`` if there is one."""

    points: dict[str, Found]
    predictor: Tensor | None


def calibrate(
    folder: str,
    windows: Sequence[Tensor],
    measured_on: Sequence[Tensor],
    setting: Setting,
    targets: Sequence[Target],
    report: Callable[[Target, Found], None],
    kept: Path,
    device: torch.device,
) -> Calibrated:
    """Calibrate a model.

    Args:
        folder: of the model.
        windows: int64 ``[T]`` each, for gradients, in float32.
        measured_on: windows for the search, of one length, as served.
        setting: what is calibrated.
        targets: the points to find.
        report: told of every measurement.
        kept: folder where what the gradients told is kept.
        device: where the model runs.
    """

    def exact() -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().to(device)

    explored = explore(exact, folder, windows, setting, kept)
    served, _ = PackedModel.load(folder, device=device)
    with torch.inference_mode():
        significance = explored.strategy(setting.config, device)
        yardstick = Yardstick(served, list(measured_on), setting.config, setting.page_size, significance)
        points = {target.name: search(explored.space, target, yardstick.measure, report) for target in targets}
    return Calibrated(points, explored.predictor)
