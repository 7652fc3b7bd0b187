"""Where a forward's tiles have their raw pages: in the open page of their row, or in a spare page beside it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from leankv_kernels import Plan
from leankv_kernels.host import put


@dataclass(frozen=True)
class Places:
    """Numbers of pages, the open pages of all layers and rows first, the spare ones behind them.

    Of a request's tiles one has the open page of its row: the first where it goes on with what that holds, else the
    last, whose tokens stay there. The others have spare pages, which the layers use one after the other.
    """

    at: Tensor  # int64 [layers, U], the page of each tile
    source: Tensor  # int64 [m], spare pages of last tiles that are not full
    target: Tensor  # int64 [layers, m], the open pages of their rows


def find_places(plan: Plan, layers: int, rows: int, spare: int) -> Places | None:
    """Where the tiles of a plan lie.

    Args:
        plan: the forward's plan, some requests having several tiles.
        layers, rows: of the open pages.
        spare: spare pages.

    Returns:
        None where there are too few spare pages.
    """
    request, offset = np.asarray(plan.request), np.asarray(plan.offset)
    length = np.diff(plan.q_indptr)
    first, last = np.diff(request, prepend=-1) != 0, np.diff(request, append=-1) != 0
    goes_on = (offset[first] > 0)[np.cumsum(first) - 1]
    in_row = np.where(goes_on, first, last)
    taken = np.cumsum(~in_row)
    if taken[-1] > spare:
        return None
    behind = np.where(in_row, 0, layers * rows + taken - 1)
    left = np.flatnonzero(last & ~in_row & (offset + length < plan.page_size))
    device = plan.rows.device
    behind_there, in_row_there, left_there, source = put(device, behind, in_row.astype(np.int64), left, behind[left])
    open_pages = torch.arange(0, layers * rows, rows, device=device)[:, None] + plan.rows
    at = open_pages * in_row_there + behind_there
    return Places(at, source, open_pages.index_select(1, left_there))


def spare_pages(tokens: int, rows: int, page_size: int) -> int:
    """Spare pages that a forward of so many tokens takes at most: one for each request that ends a page with its first
    token and begins one with its second, and one for each whole page of more tokens."""
    requests = min(rows, tokens // 2)
    return requests + (tokens - 2 * requests) // page_size
