"""Where models live on disk, and how a folder is filled by one process at a time, wholly or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def home() -> Path:
    """Returns the cache directory: `$LEANKV_HOME`, else `leankv-sglang` under the XDG cache directory."""
    if chosen := os.environ.get("LEANKV_HOME"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that relative paths are to be ignored.
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "leankv-sglang"


def model_folder(name: str) -> Path:
    """Returns the folder in which the model `name` is or would be."""
    return home() / "models" / name


def say(message: str, *, quiet: bool) -> None:
    """Prints one line of progress on stderr, unless `quiet`."""
    if not quiet:
        print(f"leankv: {message}", file=sys.stderr, flush=True)


@contextmanager
def folder_lock(target: Path, *, quiet: bool = False) -> Iterator[None]:
    """Holds the machine-wide lock that belongs to the folder `target`, waiting for it if need be."""
    locks = home() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:16]
    with open(locks / f"{key}.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that is preparing {target.name}", quiet=quiet)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def build_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder beside `target` that replaces it on success and vanishes on failure.

    Call it with `folder_lock(target)` held: it also clears away what killed processes left behind.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.tmp-"
    for stale in target.parent.iterdir():
        if stale.name.startswith(prefix):
            shutil.rmtree(stale, ignore_errors=True)
    fresh = target.parent / f"{prefix}{os.getpid()}"
    fresh.mkdir()
    try:
        yield fresh
        _swap_in(fresh, target, aside=target.parent / f"{prefix}{os.getpid()}-old")
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _swap_in(fresh: Path, target: Path, *, aside: Path) -> None:
    if not target.exists():
        os.replace(fresh, target)
        return
    os.replace(target, aside)
    try:
        os.replace(fresh, target)
    except OSError:
        os.replace(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)
