"""Packs pages for a place outside the store, and takes them in again: the spec."""

from __future__ import annotations

import torch
from torch import Tensor

from leankv_kernels import layout as L
from leankv_kernels.layout import RecordLayout, read_header
from leankv_kernels.packed import PackedPages
from leankv_kernels.store import RecordStore


def pack_pages(store: RecordStore, pages: Tensor, level: Tensor, room: tuple[int, int] | None = None) -> PackedPages:
    """Copy pages out of the store, which keeps them.

    Args:
        store: holds a record of each in every layer, none demoted.
        pages: int64 ``[n]``.
        level: int64 ``[n]``, ``LEVEL_NEAR`` where the near part is wanted too, if it is held; else ``LEVEL_FAR``.
        room: bytes that far and near parts take at most, where that is known. A backend on a device may then write them
            to main memory without being waited for: ``far`` and ``near`` are as long as this, what is behind the sum
            of the lengths is nothing, and they are there once ``far_bytes`` is.
    """
    lay, layers = store.layout, store.num_layers
    records = torch.stack([store.gather(layer, pages) for layer in range(layers)], 1).flatten(0, 1)
    header = read_header(records, lay)
    held = torch.minimum(header.level.long(), level.repeat_interleave(layers))
    far, full = (lay.level_bytes(header.counts, held.clamp(max=at)) for at in (L.LEVEL_FAR, L.LEVEL_NEAR))
    words = records.view(torch.int32)
    words[:, [L.W_PAGE, L.W_LAYER, L.W_BLOCKS]] = 0  # where it lies, not what it holds
    words[:, L.W_LEVEL], words[:, L.W_BYTES] = L.LEVEL_FAR, far.int()
    body, tail = _body(lay, records, far), _between(records, far, full)
    return PackedPages(
        records[body],
        body.sum(1).view(-1, layers),
        records[tail],
        tail.sum(1).view(-1, layers),
        held.view(-1, layers)[:, 0],
    )


def unpack_pages(store: RecordStore, pages: Tensor, packed: PackedPages) -> None:
    """Take pages into the store, under new ids.

    Args:
        store: of the layout that they were packed from; blocks for them are there.
        pages: int64 ``[n]``, no two alike, none with a record.
        packed: what :func:`pack_pages` gave, as it was.
    """
    lay, layers = store.layout, store.num_layers
    far = packed.far_bytes.flatten() + 4 * lay.max_blocks
    full = far + packed.near_bytes.flatten()
    records = torch.zeros(len(far), lay.record_bytes, dtype=torch.uint8, device=packed.far.device)
    records[_body(lay, records, far)] = packed.far
    records[_between(records, far, full)] = packed.near
    words = records.view(torch.int32)
    words[:, L.W_LEVEL], words[:, L.W_BYTES] = packed.level.repeat_interleave(layers).int(), full.int()
    words[:, L.W_BLOCKS] = -(-full // lay.block_bytes).int()
    by_layer = records.view(-1, layers, lay.record_bytes).transpose(0, 1).reshape(-1, lay.record_bytes)
    if len(pages):
        store.write(0, pages, by_layer, full.view(-1, layers).t().flatten())


def _between(records: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Mask of bytes of records from ``start`` up to ``end``, ``[n]`` each."""
    at = torch.arange(records.shape[1], device=records.device)
    return (at >= start[:, None]) & (at < end[:, None])


def _body(lay: RecordLayout, records: Tensor, end: Tensor) -> Tensor:
    """The same up to ``end``, but for the block list."""
    mask = _between(records, torch.zeros_like(end), end)
    mask[:, 4 * lay.list_word : 4 * (lay.list_word + lay.max_blocks)] = False
    return mask
