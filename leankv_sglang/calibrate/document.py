"""The profile as a JSON document: begun, added to, written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from leankv_sglang.calibrate.explore import Setting
from leankv_sglang.calibrate.run import Calibrated
from leankv_sglang.compression.fingerprint import fingerprint
from leankv_sglang.compression.profile_file import VERSION, current_names, load_profile, pack_predictor
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.shape import ModelShape

Document = dict[str, Any]


def begin(folder: str, shape: ModelShape, setting: Setting) -> Document:
    """A profile without points.

    Args:
        folder, shape: the model's.
        setting: what is calibrated.
    """
    config = setting.config
    return {
        "leankv_profile": VERSION,
        "model": {
            "name": Path(folder).name,
            "num_layers": shape.layers,
            "num_kv_heads": shape.kv_heads,
            "head_dim": shape.head_dim,
            **({} if shape.v_head_dim == shape.head_dim else {"v_head_dim": shape.v_head_dim}),
            "fingerprint": fingerprint(folder),
        },
        "page_size": setting.page_size,
        "tiers": config.tiers,
        "rotation": config.rotation,
        "significance": config.significance,
        "near_pages": config.near_pages,
        "keep_first": config.keep_first,
        "points": {},
    }


def go_on(path: str, fresh: Document) -> Document:
    """The profile in a file, to which points of another calibration shall be added.

    Raises:
        LeanKVError: where it is no profile, or one for something else than ``fresh`` was begun for.
    """
    load_profile(path)
    document: Document = {"keep_first": 0, **current_names(json.loads(Path(path).read_text()))}
    if other := [name for name in fresh if name != "points" and document[name] != fresh[name]]:
        raise LeanKVError(f"--add: {path} has another {', '.join(other)}; calibrate it anew, without --add.")
    return document


def add(document: Document, done: Calibrated, calibration: dict[str, Any]) -> None:
    """Put what was found into a profile.

    Args:
        document: of :func:`begin` or :func:`go_on`.
        done: what was found.
        calibration: what the points were calibrated on.

    Raises:
        LeanKVError: where the profile's other points belong to another predictor.
    """
    predictor = None if done.predictor is None else pack_predictor(done.predictor)
    if document["points"] and document.get("predictor") != predictor:
        raise LeanKVError("--add: the profile has another predictor; calibrate it anew, on one text, without --add.")
    for name, found in done.points.items():
        tables = zip(("alpha_high", "alpha_mid", "alpha_low"), found.alphas, strict=True)
        figures = {what: float(f"{value:.4g}") for what, value in found.measured._asdict().items()}
        document["points"][name] = {**dict(tables), "measured": figures}
    document["calibration"] = calibration
    if predictor is not None:
        document["predictor"] = predictor


def write(document: Document, path: str) -> None:
    """Write a profile, the numbers of a layer on one line: readable, and small in a diff.

    Raises:
        LeanKVError: where the file cannot be written.
    """
    text = re.sub(r"\[[^\[\]]*\]", lambda found: re.sub(r"\s+", " ", found[0]), json.dumps(document, indent=1))
    try:
        Path(path).write_text(text + "\n")
    except OSError as error:
        raise LeanKVError(f"--out {path} cannot be written: {error.strerror or error}.") from error
