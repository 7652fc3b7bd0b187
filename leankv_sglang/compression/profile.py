"""Which profile a server takes: the one that was asked for, or the one that comes with the package for its model."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

from leankv_sglang.compression.fingerprint import fingerprint
from leankv_sglang.compression.profile_file import Profile, load_profile
from leankv_sglang.errors import LeanKVError

SHIPPED = Path(__file__).with_name("profiles")
"""Folder of the profiles that come with the package, one file a model."""
SERVED_POINT = "near-lossless"
"""What a server takes that was told nothing: the point nearest to the model's own answers."""
NO_PROFILE = "none"
"""What ``--leankv-profile`` takes for no profile at all, whatever is shipped."""


def find_profile(text: str, model: str, kernels: str = "auto") -> Profile:
    """The profile that ``--leankv-profile`` names: a file, ``FILE:POINT``, or a point of the one shipped for a model.

    Args:
        text: what the flag says.
        model: the model's folder.
        kernels: backend of the ops, for the configuration.

    Raises:
        LeanKVError: one sentence that says what is wrong with the file, or what there is for this model.
    """
    path, colon, point = text.rpartition(":") if os.path.isfile(text.rpartition(":")[0]) else (text, "", "")
    if not text or (colon and not point):
        raise LeanKVError(
            f"--leankv-profile takes a name, FILE, FILE:NAME or {NO_PROFILE}, and {text!r} lacks the name; leave "
            "the flag out for the default."
        )
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
    """The profile that a server takes; where nothing was said about compression, the shipped one's near-lossless point.

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
