"""Commit of full pages: pack by tiers, and into blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from leankv_kernels.layout import PRUNED, RecordLayout
from leankv_kernels.raw import RawPages
from leankv_kernels.reference.codec import centre_of, out_of_range, rotate
from leankv_kernels.reference.record import encode
from leankv_kernels.store import RecordStore

# Of tiers and commit in torch: for each number of a page's keys, beside copies of these and of the values; for each
# token of a KV head; for each column score. Measured, and a test holds it.
_NUMBER_BYTES, _TOKEN_BYTES, _SCORE_BYTES = 56, 128, 24


def commit_bytes(layout: RecordLayout, query_heads: int, itemsize: int) -> int:
    """What the tensors that tiers and commit of one page of one layer make hold together at most.

    Args:
        layout: of its record.
        query_heads: of the layer.
        itemsize: bytes of a raw number.
    """
    tokens = layout.num_kv_heads * layout.page_size
    widest, both = max(layout.head_dim, layout.v_head_dim), layout.head_dim + layout.v_head_dim
    numbers = tokens * (widest * _NUMBER_BYTES + both * itemsize)
    return numbers + tokens * _TOKEN_BYTES + query_heads * layout.page_size * _SCORE_BYTES


def commit_pages(store: RecordStore, layer: int, pages: Tensor, raw: RawPages, tiers: Tensor, rotation: str) -> None:
    """Rotate, quantize and pack full pages and store their records; afterwards they are immutable.

    Numbers beyond float16's range saturate, once rotated. What is not finite is coded as 0, and the centre of its
    page's keys, of that KV head, is NaN, and with it all that reads them. Both are counted (``Usage``).

    Args:
        store: where the records go.
        layer: index in the store; of the first, where the pages are of L layers.
        pages: int64 ``[n]``, logical ids that hold no record in these layers yet.
        raw: the n pages.
        tiers: uint8 ``[L, n, H, P]``, or ``[n, H, P]`` of one layer.
        rotation: ``hadamard`` or ``none``.
    """
    _, *came = (x.flatten(0, 1).transpose(-3, -2) for x in raw.full_pages())
    key, value = (x.masked_fill(~x.isfinite(), 0.0) for x in came)
    tiers = tiers.reshape(-1, *tiers.shape[-2:])
    centre = centre_of(key, rotation)
    rotated = rotate(key, rotation), rotate(value, rotation)
    readable = torch.stack([x.isfinite().flatten(2).all(2) for x in came]).all(0)
    records, nbytes = encode(*rotated, tiers, store.layout, centre, readable)
    store.write(layer, pages, records, nbytes)
    kept = kept_rows(tiers, store.layout)
    coded = rotated[0] - centre.to(torch.float64)[:, :, None], rotated[1]
    for rows in zip(came, coded, strict=True):
        store.out_of_range.add_(torch.stack([(which & kept).sum() for which in out_of_range(*rows)]))


def kept_rows(tiers: Tensor, layout: RecordLayout) -> Tensor:
    """Of which tokens a record keeps keys and values, bool; pruned ones are in the near part alone."""
    return (tiers != PRUNED) | layout.near
