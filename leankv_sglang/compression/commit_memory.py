"""What memory commits take beside the pages: so much at a time, whatever there is to commit."""

from __future__ import annotations

from collections.abc import Iterator

from leankv_kernels import Ops, RecordLayout

COMMIT_BYTES = 256 << 20
"""More than this is committed in slices, unless a single page of one layer takes more."""


def pages_at_once(ops: Ops, layout: RecordLayout, query_heads: int, itemsize: int) -> int:
    """Pages, each of one layer, that are committed together at most.

    Args:
        ops: the kernels that do it.
        layout: of records.
        query_heads: of a layer.
        itemsize: bytes of a raw number.
    """
    return max(1, COMMIT_BYTES // ops.commit_bytes(layout, query_heads, itemsize))


def commit_bytes(ops: Ops, layout: RecordLayout, query_heads: int, itemsize: int, pages: int) -> int:
    """Bytes that a commit of so many pages, each of one layer, takes at most; the other arguments are those of
    :func:`pages_at_once`."""
    at_once = min(pages, pages_at_once(ops, layout, query_heads, itemsize))
    return at_once * ops.commit_bytes(layout, query_heads, itemsize)


def slices(layers: int, pages: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Cut pages of several layers into slices of layers and of pages, of at most so many pages of one layer each; in
    the order of a commit of all, layer by layer, so that every record gets the blocks that it would get there."""
    together = max(1, at_once // max(pages, 1))
    step = max(1, min(pages, at_once))
    for layer in range(0, layers, together):
        for page in range(0, pages, step):
            yield slice(layer, layer + together), slice(page, page + step)
