"""A page as one run of bytes that says of itself what it is: what leaves the device, and comes back.

Of each page there are two objects. The *far* object holds the records of all layers at the far level; the *near* object
what is needed besides where a hit ends. Neither has anything in it that is true of one pool alone.

A damaged object, a cut one, one of another model, of other flags, or under another page's name is told from a good one
before any of it is used: the header names identity and page, and a checksum covers every byte.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from leankv_kernels.layout import LEVEL_FAR, LEVEL_NEAR
from leankv_kernels.packed import PackedPages

MAGIC = b"LeanKVpg"
VERSION = 1
"""Of the object; that of what is in it is part of the identity."""
IDENTITY_BYTES, KEY_BYTES, CHECKSUM_BYTES = 16, 32, 16
COUNTS = 6
"""Blocks at the levels base, far and near, and high, mid and low tokens; see ``RecordStore.count_pages``."""
_HEADER = struct.Struct(f"<8sHcxI{IDENTITY_BYTES}s{KEY_BYTES}s{COUNTS}i")


class Part(StrEnum):
    """Which of a page's two objects."""

    FAR = "f"
    NEAR = "n"


class PageName(NamedTuple):
    """What an object is called in a store."""

    key: str
    """SGLang's hash of the tokens up to the page's end and of the request's namespace, 64 hex digits."""
    part: Part


class PageObject(NamedTuple):
    """An object, read."""

    counts: NDArray[np.int32]
    """``[COUNTS]``."""
    lengths: NDArray[np.uint32]
    """``[layers]``, bytes of each record's part."""
    data: memoryview
    """The parts, one after the other."""


class ObjectError(ValueError):
    """Bytes that are not the object they were taken for; says why."""


def write_object(
    name: PageName, identity: bytes, counts: NDArray[np.int32], lengths: NDArray[np.int64], data: memoryview
) -> bytes:
    """The bytes of an object.

    Args:
        name: the page and the part.
        identity: of what decides the bytes besides tokens, ``IDENTITY_BYTES`` long.
        counts: ``[COUNTS]``.
        lengths: ``[layers]``.
        data: the part of every layer.
    """
    key = bytes.fromhex(name.key)
    head = _HEADER.pack(MAGIC, VERSION, name.part.encode(), len(lengths), identity, key, *counts.tolist())
    parts = (head, lengths.astype("<u4").tobytes(), data)
    checksum = xxhash.xxh3_128()
    for part in parts:
        checksum.update(part)
    return b"".join((*parts, checksum.digest()))


def read_object(name: PageName, identity: bytes, layers: int, data: bytes | memoryview) -> PageObject:
    """An object's parts, none of them copied.

    Raises:
        ObjectError: for anything but what :func:`write_object` makes of such a page, name and identity.
    """
    view = memoryview(data)
    if len(view) < _HEADER.size + 4 * layers + CHECKSUM_BYTES:
        raise ObjectError("it is cut short")
    magic, version, part, count, whose, key, *counts = _HEADER.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise ObjectError("it is no page of this version")
    if xxhash.xxh3_128_digest(view[:-CHECKSUM_BYTES]) != view[-CHECKSUM_BYTES:]:
        raise ObjectError("its checksum is wrong")
    if whose != identity or part != name.part.encode() or key.hex() != name.key or count != layers:
        raise ObjectError("it is of another page, model or configuration")
    lengths = np.frombuffer(view, "<u4", layers, _HEADER.size)
    body = view[_HEADER.size + 4 * layers : -CHECKSUM_BYTES]
    if int(lengths.sum(dtype=np.int64)) != len(body):
        raise ObjectError("its parts have other lengths than it says")
    return PageObject(np.array(counts, np.int32), lengths, body)


def to_objects(
    keys: Sequence[str], identity: bytes, counts: NDArray[np.int32], packed: PackedPages
) -> dict[PageName, bytes]:
    """The objects of packed pages, in main memory; pages without a near part have no near object.

    Args:
        keys: of the pages.
        identity: see :func:`write_object`.
        counts: ``[n, COUNTS]``.
        packed: the pages.
    """
    found: dict[PageName, bytes] = {}
    level = packed.level.numpy()
    for part in Part:
        data, lengths = (packed.far, packed.far_bytes) if part is Part.FAR else (packed.near, packed.near_bytes)
        bytes_of, table = data.numpy().data, lengths.numpy()
        ends = table.sum(1).cumsum()
        if len(ends) and ends[-1] > len(bytes_of):
            raise ValueError(f"{ends[-1]} bytes of pages were packed into {len(bytes_of)}: none of them is kept")
        for i, key in enumerate(keys):
            if part is Part.FAR or level[i] == LEVEL_NEAR:
                name = PageName(key, part)
                body = bytes_of[int(ends[i] - table[i].sum()) : int(ends[i])]
                found[name] = write_object(name, identity, counts[i], table[i], body)
    return found


def to_packed(far: Sequence[PageObject], near: Sequence[PageObject | None]) -> PackedPages:
    """Pages to be unpacked, from their far objects and, where there is one, their near ones."""
    level = [LEVEL_FAR if one is None else LEVEL_NEAR for one in near]
    layers = len(far[0].lengths)
    none = PageObject(np.zeros(COUNTS, np.int32), np.zeros(layers, np.uint32), memoryview(b""))
    both = [(_joined(some), _table(some)) for some in (far, [one or none for one in near])]
    return PackedPages(*both[0], *both[1], torch.tensor(level))


def _joined(objects: Sequence[PageObject]) -> torch.Tensor:
    data = bytearray().join(one.data for one in objects)
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _table(objects: Sequence[PageObject]) -> torch.Tensor:
    return torch.from_numpy(np.stack([one.lengths for one in objects]).astype(np.int64))
