"""Finished items on disk, one JSON line each, found again by a hash of everything that decides their value."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_CODE = (
    "kernels",
    "leankv_sglang/attention/read_rule.py",
    "leankv_sglang/kvcache/sizing.py",
    "leankv_sglang/compression",
    "bench/quality/fp8.py",
)
_EVALUATION = ("leankv_sglang/offline", "bench/quality/decoding.py", "bench/quality/sampling.py")
_SOURCES = {".py", ".h", ".inl", ".cpp"}


class ItemStore:
    """Values by key, in one file per task.

    Args:
        folder: made when the first item is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, dict[str, dict[str, Any]]] = {}

    def get(self, task: str, key: dict[str, Any]) -> dict[str, Any] | None:
        """The value of an item, or None if it is not done."""
        return self._load(task).get(_hash(key))

    def put(self, task: str, key: dict[str, Any], value: dict[str, Any]) -> None:
        """Keep the value of a finished item, on disk before this returns."""
        known, digest = self._load(task), _hash(key)
        known[digest] = value
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self._file(task), "a") as out:
            out.write(json.dumps({"hash": digest, "key": key, "value": value}) + "\n")

    def _file(self, task: str) -> Path:
        return self.folder / f"{task}.jsonl"

    def _load(self, task: str) -> dict[str, dict[str, Any]]:
        if task not in self._known:
            known = self._known[task] = {}
            if self._file(task).exists():
                text = self._file(task).read_text()
                if text and not text.endswith("\n"):
                    # A run was killed while it wrote; what comes next must not be joined to that line.
                    with open(self._file(task), "a") as out:
                        out.write("\n")
                for line in text.splitlines():
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue
                    known[entry["hash"]] = entry["value"]
        return self._known[task]


def digest_of(value: Any) -> str:
    """Short hash of anything JSON can say."""
    return _hash(value)[:16]


@cache
def code_digest(compressed: bool) -> str:
    """Hash of the sources that decide what a model computes over the exact cache, or over ours."""
    digest = hashlib.sha256()
    for name in (*_EVALUATION, *(_CODE if compressed else ())):
        place = _ROOT / name
        files = sorted(f for f in place.rglob("*") if f.suffix in _SOURCES) if place.is_dir() else [place]
        for file in files:
            digest.update(str(file.relative_to(_ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
