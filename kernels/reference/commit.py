"""Commit of full pages: pack by tiers, and into blocks."""

from __future__ import annotations

from torch import Tensor

from leankv_kernels.layout import RecordLayout
from leankv_kernels.raw import RawPages
from leankv_kernels.reference.codec import centre_of, rotate
from leankv_kernels.reference.record import encode
from leankv_kernels.store import RecordStore

# Of tiers and commit in torch: for each number of a page's keys, beside copies of these and of the values; for each
# token of a KV head; for each column score. Measured, and a test holds it.
_NUMBER_BYTES, _TOKEN_BYTES, _SCORE_BYTES = 52, 128, 24


def commit_bytes(layout: RecordLayout, query_heads: int, itemsize: int) -> int:
    """What the tensors that tiers and commit of one page of one layer make hold together at most.

    Args:
        layout: of its record.
        query_heads: of the layer.
        itemsize: bytes of a raw number.
    """
    tokens = layout.num_kv_heads * layout.page_size
    numbers = tokens * layout.head_dim * (_NUMBER_BYTES + 2 * itemsize)
    return numbers + tokens * _TOKEN_BYTES + query_heads * layout.page_size * _SCORE_BYTES


def commit_pages(store: RecordStore, layer: int, pages: Tensor, raw: RawPages, tiers: Tensor, rotation: str) -> None:
    """Rotate, quantize and pack full pages and store their records; afterwards they are immutable.

    Args:
        store: where the records go.
        layer: index in the store; of the first, where the pages are of L layers.
        pages: int64 ``[n]``, logical ids that hold no record in these layers yet.
        raw: the n pages.
        tiers: uint8 ``[L, n, H, P]``, or ``[n, H, P]`` of one layer.
        rotation: ``hadamard`` or ``none``.
    """
    _, key, value = (x.flatten(0, 1) for x in raw.full_pages())
    by_head = [rotate(x, rotation).transpose(1, 2) for x in (key, value)]
    centre = centre_of(key.transpose(1, 2), rotation)
    records, nbytes = encode(by_head[0], by_head[1], tiers.reshape(-1, *tiers.shape[-2:]), store.layout, centre)
    store.write(layer, pages, records, nbytes)
