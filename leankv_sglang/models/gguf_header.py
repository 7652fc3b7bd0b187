"""A walk over what stands before a GGUF file's weights: `gguf` itself believes every count that a file states."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from .errors import ModelError

MOST_ITEMS = 1 << 23
"""Of all arrays together, twenty times the largest vocabulary with its merges."""
_DEEPEST = 4
_MOST_DIMENSIONS = 8
_STRING, _ARRAY = 8, 9
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes, by the type's number


def check_header(path: Path) -> None:
    """Checks that a file which begins as GGUF is as long as the counts in it say, its weights apart.

    Raises:
        ModelError: it is not, or is written in the other byte order.
    """
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(path, data)
        walk.skip(4)
        if not walk.number("<I") & 0xFFFF:
            raise ModelError(f"{path} is written in the other byte order.")
        tensors, fields = walk.number("<Q"), walk.number("<Q")
        for _ in range(fields):
            walk.string()
            walk.value(walk.number("<I"))
        for _ in range(tensors):
            walk.string()
            dimensions = walk.number("<I")
            if dimensions > _MOST_DIMENSIONS:
                raise walk.damaged(f"a tensor of {dimensions:,} dimensions")
            walk.skip(8 * dimensions + 4 + 8)


class _Walk:
    """A place in a file, which only moves forward and never past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at, self._items = path, data, 0, 0

    def damaged(self, why: str) -> ModelError:
        return ModelError(f"{self._path} is damaged or cut short (it states {why}).")

    def skip(self, count: int) -> None:
        if count > len(self._data) - self._at:
            raise self.damaged(f"{count:,} bytes where {len(self._data) - self._at:,} are left")
        self._at += count

    def number(self, form: str) -> int:
        start = self._at
        self.skip(struct.calcsize(form))
        number: int = struct.unpack_from(form, self._data, start)[0]
        return number

    def string(self) -> None:
        self.skip(self.number("<Q"))

    def value(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self.number("<I"), self.number("<Q")
            self._items += count
            if self._items > MOST_ITEMS:
                raise self.damaged(f"an array of {count:,} items")
            if inner in _WIDTHS:
                self.skip(count * _WIDTHS[inner])
            else:
                for _ in range(count):
                    self.value(inner, depth + 1)
        elif kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        else:
            raise self.damaged(f"a value of type {kind:,}")
