"""Logical ids of the pages that a forward reads and fills, from the host's mirror of request rows: no device asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leankv_kernels import Plan
from leankv_kernels.host import runs
from leankv_sglang.kvcache.ledger import Pages
from leankv_sglang.kvcache.page_rows import PageRows

Rows = NDArray[np.int64]


def pages_read(table: PageRows, rows: Rows, prefix: Sequence[int], extend: Sequence[int]) -> Pages:
    """What ``Plan.pages`` is on the device, int64 ``[sum]``: of each request the pages before its last own one.

    Args:
        table: the mirror.
        rows: ``[R]``, request rows.
        prefix, extend: tokens of each request before and in the forward; none are read for one that extends by none.
    """
    before, new = np.asarray(prefix, np.int64), np.asarray(extend, np.int64)
    count = np.where(new > 0, (before + np.maximum(new, 1) - 1) // table.page_size, 0)
    request, number = runs(count)
    return table.read(rows[request], number)


def pages_filled(table: PageRows, rows: Rows, plan: Plan) -> tuple[Pages, Rows]:
    """Ids of the pages of ``plan.full``, in its order, and the rows they are of, int64 ``[f]`` each."""
    end = np.asarray(plan.offset, np.int64) + np.diff(np.asarray(plan.q_indptr, np.int64))
    full = np.flatnonzero(end == plan.page_size)
    owners = rows[np.asarray(plan.request, np.int64)[full]]
    return table.read(owners, np.asarray(plan.page_index, np.int64)[full]), owners


def pages_near(
    pages: Pages, own: Sequence[int], indptr: Sequence[int], request: Sequence[int], near_pages: int
) -> Pages:
    """Ids of the pages that some tile reads near, one mention for each tile.

    Args:
        pages: as :func:`pages_read` has them.
        own: pages before each tile's own.
        indptr: first of each request's pages in ``pages``.
        request: of each tile.
        near_pages: pages before the own that are read near.
    """
    before, start = np.asarray(own, np.int64), np.asarray(indptr, np.int64)[np.asarray(request, np.int64)]
    back = np.arange(1, near_pages + 1)
    at = (start + before)[:, None] - back
    return pages[at[back <= before[:, None]]]
