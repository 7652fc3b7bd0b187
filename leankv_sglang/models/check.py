"""Whether a model's folder is whole, before anything is loaded from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import ModelError
from .hub import check_hub_name

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "tiktoken.model")
_LENGTH_BYTES, _LONGEST_HEADER = 8, 100 << 20
"""Of a safetensors file: the length of its header, and what the format allows it."""


def check_model_folder(name: str, flag: str = "--model-path", weights: bool = True, tokenizer: bool = True) -> None:
    """Check the folder of a Hugging Face model: its configuration, its tokenizer, and that no weight file is cut short.

    What is no folder here may be a name of a hub, unless it looks like a path.

    Args:
        name: the folder.
        flag: what the user gave it by.
        weights: whether weights have to be there.
        tokenizer: whether a tokenizer has to be there.

    Raises:
        ModelError: the first thing that is wrong.
    """
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists():
            raise ModelError(f"{flag} {name} is a file; give the folder of a Hugging Face model, or a .gguf file.")
        if "://" not in name and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
            raise ModelError(f"{flag} {name} does not exist; give the folder of a Hugging Face model.")
        check_hub_name(name, flag)
        return
    try:
        _config(folder, flag)
        if tokenizer:
            check_tokenizer(name, flag)
        if weights:
            _weights(folder, flag)
    except OSError as error:
        raise ModelError(f"{flag} {name} cannot be read: {error.strerror or error} ({error.filename}).") from error


def check_tokenizer(name: str, flag: str = "--tokenizer-path") -> None:
    """Raise :class:`ModelError` where a folder holds no tokenizer; a name of a hub is let pass."""
    if Path(name).is_dir() and not any((Path(name) / file).is_file() for file in TOKENIZERS):
        raise ModelError(f"{flag} {name} holds no tokenizer ({TOKENIZERS[0]}); copy the model's own there.")


def _config(folder: Path, flag: str) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{flag} {folder} holds no config.json; give the folder of a Hugging Face model.")
    if not isinstance(_json(path.read_bytes()), dict):
        raise ModelError(f"{flag}: {path} is not a JSON object; copy the model's own config.json there.")


def _weights(folder: Path, flag: str) -> None:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = _json(index.read_bytes())
        names = listed.get("weight_map") if isinstance(listed, dict) else None
        if not isinstance(names, dict):
            raise ModelError(f"{flag}: {index} lists no weights; copy the model's own there.")
        for missing in sorted({str(file) for file in names.values() if not (folder / str(file)).is_file()})[:1]:
            raise ModelError(f"{flag}: {folder / missing}, which the model's index lists, is missing; fetch it again.")
    if not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):
        raise ModelError(f"{flag} {folder} holds no weights ({', '.join(WEIGHTS[:2])}); fetch the model again.")
    for file in sorted(folder.glob("*.safetensors")):
        if why := _safetensors_problem(file):
            raise ModelError(f"{flag}: {file} {why}; fetch it again.")


def _safetensors_problem(file: Path) -> str | None:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or (length < _LONGEST_HEADER and length + _LENGTH_BYTES > size):
            return f"is cut short at {size:,} bytes"
        header = _json(stream.read(length)) if length < _LONGEST_HEADER else None
    if not isinstance(header, dict):
        return "is not a safetensors file"
    try:
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        whole = _LENGTH_BYTES + length + int(end)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError):
        return "is not a safetensors file"
    return f"is cut short: it has {size:,} of {whole:,} bytes" if size < whole else None


def _json(text: bytes) -> Any:
    """What it holds, None where it is no JSON, or nests deeper than Python follows."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
