"""Turns a Llama or Qwen2 GGUF file into a Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from .cache import build_folder, say
from .config import build_config, build_generation_config, read_shape
from .errors import ModelError
from .gguf_file import GGUFFile
from .manifest import Manifest
from .tokenizer import write_tokenizer
from .weights import plan_weights, write_safetensors

# Raise it whenever the output for some file changes: folders of other versions are made anew.
CONVERTER_VERSION = 1


def convert_into(gguf: Path, target: Path, *, sha256: str, quiet: bool = False) -> None:
    """Converts `gguf` into the folder `target`, which appears, or is replaced, only when all is written.

    Call it with `folder_lock(target)` held.

    Args:
        sha256: the checksum of `gguf`, for the manifest.

    Raises:
        ModelError: the file cannot be converted; `target` is as it was before.
        OSError: the disk is full or not writable; likewise.
    """
    try:
        file = GGUFFile(gguf)
        with build_folder(target) as fresh:
            say(f"converting {gguf.name} to {target}", quiet=quiet)
            write_model(file, fresh, quiet=quiet)
            write_tokenizer(file, fresh)
            Manifest.describe(
                fresh,
                source_name=gguf.name,
                source_sha256=sha256,
                source_bytes=gguf.stat().st_size,
                converter_version=CONVERTER_VERSION,
            ).write(fresh)
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        # Any value in the metadata may be of another type, or of another length, than it should.
        raise ModelError(f"{gguf} states what cannot be converted ({' '.join(str(error).split())}).") from error


def write_model(file: GGUFFile, folder: Path, *, quiet: bool = False) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bf16), but no tokenizer.

    Raises:
        ModelError: the file is not a plain Llama or Qwen2 model, or uses something unsupported.
    """
    shape = read_shape(file)
    targets, tied = plan_weights(file, shape)
    _write_json(folder / "config.json", build_config(file, shape, tied=tied))
    _write_json(folder / "generation_config.json", build_generation_config(file))
    write_safetensors(file, targets, folder / "model.safetensors", quiet=quiet)


def file_sha256(path: Path) -> str:
    """Returns the sha256 of a file in hex.

    Raises:
        ModelError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        if not path.is_file() and not path.is_dir() and path.exists():
            raise ModelError(f"{path} cannot be read: it is no regular file.")
        with open(path, "rb") as handle:
            while chunk := handle.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}.") from None
    return digest.hexdigest()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
