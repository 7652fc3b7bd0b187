"""What a calibration is asked for, checked before its long work begins."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from leankv_sglang.calibrate.search import Target
from leankv_sglang.errors import LeanKVError
from leankv_sglang.json_file import read_json
from leankv_sglang.models.early import early_model
from leankv_sglang.plugin.compatibility import check_model

MOST_WINDOWS, MOST_SEED = 1024, 2**32 - 1
# Below the bars that the profiles are named for: another text may cost a little more.
TARGETS = {"near-lossless": {"kl": 0.0045}, "balanced": {"kl": 0.0145}, "small": {"kl": 0.032}}


def check_numbers(args: argparse.Namespace) -> None:
    """Raise :class:`LeanKVError` unless the counts and the seed can be."""
    for flag, value in (("--windows", args.windows), ("--measured", args.measured)):
        if not 1 <= value <= MOST_WINDOWS:
            raise LeanKVError(f"{flag} is a number of windows from 1 to {MOST_WINDOWS:,}, not {value}.")
    if not 0 <= args.seed <= MOST_SEED:
        raise LeanKVError(f"--seed is a whole number from 0 to {MOST_SEED}, not {args.seed}.")


def targets_of(args: argparse.Namespace) -> list[Target]:
    """The points to find.

    Raises:
        LeanKVError: one sentence for a target or a name that cannot be.
    """
    kl, ratio = args.target_kl, args.target_ratio
    if kl is None and ratio is None:
        return [Target(name, **wanted) for name, wanted in TARGETS.items()]
    # NaN is neither.
    if kl is not None and not 0 < kl < math.inf:
        raise LeanKVError(f"--target-kl is a number of nats above 0, such as 0.01, not {kl}.")
    if ratio is not None and not 1 <= ratio < math.inf:
        raise LeanKVError(f"--target-ratio is a number of at least 1, such as 4, not {ratio}.")
    if not args.name.isidentifier():
        raise LeanKVError(f"--name must be a plain word, not {args.name!r}.")
    return [Target(args.name, kl, ratio)]


def check_writable(path: str) -> None:
    """Raise :class:`LeanKVError` unless a profile can be written there; leaves what is there as it is."""
    file = Path(path)
    if not path or (os.path.exists(path) and not file.is_file()):
        raise LeanKVError(f"--out takes the file to write the profile to, not {path!r}.")
    try:
        fresh = not file.exists()
        file.open("a").close()
        if fresh:
            file.unlink()
    except OSError as error:
        raise LeanKVError(f"--out {path} cannot be written: {error.strerror or error}.") from error


def check_folder(folder: Path) -> None:
    """Make the folder where what gradients tell is kept; raise :class:`LeanKVError` unless it can be written to."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise LeanKVError(
            f"{folder}, where a calibration keeps what it finds, cannot be written ({error.strerror or error}); name "
            "another in LEANKV_HOME."
        ) from error


def check_kind(folder: str) -> None:
    """Raise :class:`LeanKVError` for a model of a kind that no server would take a profile of."""
    path = Path(folder) / "config.json"
    check_model(early_model(read_json(path, lambda why: LeanKVError(f"{path} {why}."))))


def read_text(path: str) -> str:
    """A text to calibrate on. Raises :class:`LeanKVError` where there is none."""
    try:
        return Path(path).read_text()
    except (OSError, ValueError) as error:
        raise LeanKVError(f"--text {path} cannot be read: {error}.") from error
