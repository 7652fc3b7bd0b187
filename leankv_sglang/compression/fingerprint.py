"""Which model a profile was calibrated for: a hash over samples of the weights that keys and values come from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

_SAMPLE_BYTES = 4096
_NAMES = ("k_proj.", "v_proj.", "qkv_proj.")


def fingerprint(folder: str | Path) -> str | None:
    """Hash over name, shape, dtype and first bytes of every tensor of the key and value projections.

    It is the same wherever the weights lie, and another one for another model or a fine-tune of the same shape. Reads a
    few kilobytes a layer.

    Returns:
        16 hex digits; None where the folder holds no such tensors in safetensors files.
    """
    found: dict[str, bytes] = {}
    for file in sorted(Path(folder).glob("*.safetensors")):
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
            for name, entry in header.items():
                if any(part in name for part in _NAMES):
                    begin, end = entry["data_offsets"]
                    stream.seek(8 + size + begin)
                    sample = stream.read(min(_SAMPLE_BYTES, end - begin))
                    found[name] = f"{name} {entry['dtype']} {entry['shape']} ".encode() + sample
    if not found:
        return None
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()[:16]
