"""Finds models on disk and makes them when they are not there: the subpackage's main job."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .cache import folder_lock, home, model_folder, say
from .catalog import CATALOG, DEFAULT_MODEL, lookup
from .convert import CONVERTER_VERSION, convert_into, file_sha256
from .errors import ModelError
from .fetch import fetch_gguf
from .manifest import MANIFEST_NAME, is_current


def ensure_model(name: str | None = None, *, quiet: bool = False) -> Path:
    """Returns the folder of a catalog model, fetching and converting it first if need be.

    The first call for a model takes the download plus 10 to 60 seconds, later ones milliseconds. Of
    several processes that call it together one does the work and the others wait.

    Args:
        name: a name in the catalog; None for `DEFAULT_MODEL`.
        quiet: print nothing.

    Raises:
        ModelError: the name is unknown, or the model cannot be fetched, verified or written.
    """
    model = lookup(DEFAULT_MODEL if name is None else name)
    target = model_folder(model.name)
    if is_current(target, source_sha256=model.gguf_sha256, converter_version=CONVERTER_VERSION):
        return target
    with _disk_errors(target), folder_lock(target, quiet=quiet):
        if not is_current(target, source_sha256=model.gguf_sha256, converter_version=CONVERTER_VERSION):
            with _scratch(model.name) as scratch:
                say(f"fetching {model.name} ({model.download_bytes / 1e6:,.0f} MB)", quiet=quiet)
                gguf = fetch_gguf(model, scratch, quiet=quiet)
                convert_into(gguf, target, sha256=model.gguf_sha256, quiet=quiet)
    return target


def is_fetched(name: str) -> bool:
    """Tells whether `ensure_model(name)` would return at once.

    Raises:
        ModelError: the name is unknown.
    """
    model = lookup(name)
    return is_current(model_folder(model.name), source_sha256=model.gguf_sha256, converter_version=CONVERTER_VERSION)


def convert_gguf(
    path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, *, quiet: bool = False
) -> Path:
    """Converts a user's own GGUF file and returns the resulting Hugging Face folder.

    Nothing is done when the folder already holds what this converter makes of the same file.

    Args:
        path: a GGUF file of Llama or Qwen2 architecture.
        out: the folder to write; by default one in the cache named after the file and its sha256.
        quiet: print nothing.

    Raises:
        ModelError: the file cannot be read or converted, or `out` holds something else.
    """
    gguf = _absolute(path)
    sha256 = file_sha256(gguf)
    target = model_folder(f"{gguf.stem}-{sha256[:12]}") if out is None else _absolute(out)
    with _disk_errors(target), folder_lock(target, quiet=quiet):
        if not is_current(target, source_sha256=sha256, converter_version=CONVERTER_VERSION):
            if out is not None and _holds_foreign_files(target):
                raise ModelError(f"{target} holds files that this converter did not write: choose another folder.")
            convert_into(gguf, target, sha256=sha256, quiet=quiet)
    return target


def resolve_model_path(arg: str | None) -> str:
    """Turns what a user gives as a model into what `--model-path` takes.

    None becomes the default model's folder, a catalog name that model's folder, and a path that ends
    in .gguf the folder of its conversion. Anything else, such as a folder, is returned unchanged.

    Raises:
        ModelError: the model cannot be fetched or converted, or its name is empty.
    """
    if arg == "":
        raise ModelError("The model's name is empty: give a folder, a .gguf file or a name of the catalog.")
    if arg is None or arg in CATALOG:
        return str(ensure_model(arg))
    if arg.lower().endswith(".gguf"):
        return str(convert_gguf(arg))
    return arg


def _absolute(path: str | os.PathLike[str]) -> Path:
    if not os.fspath(path):
        raise ModelError("The path of a file or folder is empty.")
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise ModelError(f"{path} cannot be found: {error}") from None


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}.") from None


@contextmanager
def _scratch(name: str) -> Iterator[Path]:
    """An empty folder for downloads, on the cache's own disk since /tmp may be small."""
    folder = home() / "tmp" / name
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _holds_foreign_files(target: Path) -> bool:
    if not target.exists():
        return False
    return not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST_NAME).is_file())
