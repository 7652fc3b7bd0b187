"""Which model a profile was calibrated for: a hash over samples of the weights that keys and values come from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from leankv_sglang.errors import LeanKVError

_SAMPLE_BYTES = 4096
_NAMES = ("k_proj.", "v_proj.", "qkv_proj.")


def fingerprint(folder: str | Path) -> str | None:
    """Hash over name, shape, dtype and first bytes of every tensor of the key and value projections.

    It is the same wherever the weights lie, and another one for another model or a fine-tune of the same shape. Reads a
    few kilobytes a layer.

    Returns:
        16 hex digits; None where the folder holds no such tensors in safetensors files.

    Raises:
        LeanKVError: where such a file is damaged.
    """
    found: dict[str, bytes] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        try:
            found |= _samples(file)
        except OSError as error:
            raise LeanKVError(f"{file} cannot be read ({error.strerror or error}).") from error
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise LeanKVError(
                f"{file} is not a safetensors file, or is cut short; fetch the model's weights again."
            ) from error
    if not found:
        return None
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()[:16]


def _samples(file: Path) -> dict[str, bytes]:
    found = {}
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > file.stat().st_size:
            raise ValueError("the header is longer than the file")
        for name, entry in json.loads(stream.read(size)).items():
            if any(part in name for part in _NAMES):
                begin, end = entry["data_offsets"]
                stream.seek(8 + size + begin)
                sample = stream.read(min(_SAMPLE_BYTES, end - begin))
                found[name] = f"{name} {entry['dtype']} {entry['shape']} ".encode() + sample
    return found
