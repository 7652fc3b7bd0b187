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


def pages_filled(table: PageRows, rows: Rows, plan: Plan) -> Pages:
    """Ids of the pages of ``plan.full``, in its order, int64 ``[f]``."""
    end = np.asarray(plan.offset, np.int64) + np.diff(np.asarray(plan.q_indptr, np.int64))
    full = np.flatnonzero(end == plan.page_size)
    return table.read(rows[np.asarray(plan.request, np.int64)[full]], np.asarray(plan.page_index, np.int64)[full])


def pages_near(pages: Pages, plan: Plan) -> Pages:
    """Ids of the pages that some tile reads near, one mention for each tile, of ``pages`` as :func:`pages_read` has
    them."""
    own = np.asarray(plan.page_index, np.int64)
    start = np.asarray(plan.page_indptr, np.int64)[np.asarray(plan.request, np.int64)]
    back = np.arange(1, plan.near_pages + 1)
    at = (start + own)[:, None] - back
    return pages[at[back <= own[:, None]]]
