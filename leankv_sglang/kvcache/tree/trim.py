"""Which pages of a node may lose their near part, and how early; and how far a hit may reach."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def keep_every(near_pages: int) -> int:
    """Every how many pages a boundary stays a legal end of a hit longer than its neighbours."""
    return max(16, 4 * near_pages)


def trim_steps(start: int, count: int, ends_here: bool, near_pages: int, times: int = 1) -> NDArray[np.int8]:
    """From which step on each page of a node may lose its near part, int8 ``[count]``: 0, with what lies inside nodes;
    1, with boundaries where hits seldom end; 2, not by trimming.

    Args:
        start: pages of the path before the node.
        count: pages of the node.
        ends_here: whether hits are likely to end where the node ends.
        near_pages: pages that a hit reads near, so that must be held in full before its end.
        times: of the boundaries inside nodes only every so manieth counts as one.
    """
    steps = np.zeros(count, np.int8)
    if not near_pages:
        return steps
    page = np.arange(start, start + count)
    steps[-(page + 1) % (times * keep_every(near_pages)) < near_pages] = 1
    steps[max(count - near_pages, 0) :] = 2 if ends_here else 1
    return steps


def legal_end(full: Mask, near_pages: int) -> int:
    """The longest prefix, in pages, at whose end a hit may stop: its last ``near_pages`` pages are held in full.

    Args:
        full: bool ``[n]``, whether each page of the path holds its near part.
    """
    run = np.cumsum(full)
    run = np.concatenate([[0], run])
    ends = np.arange(len(full) + 1)
    begin = np.maximum(ends - near_pages, 0)
    return int(np.flatnonzero(run[ends] - run[begin] == ends - begin)[-1])
