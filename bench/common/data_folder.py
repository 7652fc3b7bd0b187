"""Where the texts lie that benches read, and which of them are stand-ins."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from functools import cache
from pathlib import Path

from leankv_sglang.errors import LeanKVError
from leankv_sglang.models import home

MANIFEST = "stand-ins.json"
"""In the data folder: files made in place of others, each with its sha256 and what it was made of."""
STAND_IN_NOTE = (
    "Some of these texts are stand-ins (`python -m bench.data` lists them): figures from them are not those of docs/."
)
FETCH = "run `make data`, or set LEANKV_DATA to a folder that has it"


class MissingDataError(LeanKVError):
    """A file that a bench reads is not there."""


def data_dir() -> Path:
    """Where the data lie: ``LEANKV_DATA``, else ``../shared/data`` beside the checkout if it is there, else the cache.

    The folder itself may not be there.
    """
    if named := os.environ.get("LEANKV_DATA"):
        return Path(named).expanduser().absolute()
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    return beside if beside.is_dir() else home() / "data"


def data_file(name: str, how: str = FETCH) -> Path:
    """The file ``name`` of the data folder; the first stand-in that is read is told on stderr.

    Args:
        how: what to do where it is not there.

    Raises:
        MissingDataError: it is not there.
    """
    folder = data_dir()
    if not (folder / name).is_file():
        raise MissingDataError(f"There is no {name} in {folder}: {how}.")
    if is_stand_in(folder, name):
        _tell()
    return folder / name


def stand_ins(folder: Path) -> dict[str, dict[str, str]]:
    """What the folder's manifest says: ``sha256`` and ``made_of`` of each stand-in, by its path in the folder.

    Raises:
        LeanKVError: the manifest is damaged.
    """
    try:
        found: dict[str, dict[str, str]] = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LeanKVError(f"{folder / MANIFEST} is damaged ({error}): delete it and run `make data`.") from None
    return found


def is_stand_in(folder: Path, name: str) -> bool:
    """Whether the file is the stand-in that the manifest tells of, not one that was put in its place since."""
    entry = stand_ins(folder).get(name)
    return entry is not None and sha256_of(folder / name) == entry["sha256"]


def sha256_of(path: Path) -> str | None:
    """Of a file's bytes; None where there is no such file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


@cache
def _tell() -> None:
    print(STAND_IN_NOTE, file=sys.stderr, flush=True)
