"""A node of the tree as a row of an array: what the scheduler reads of it, and the page draws."""

from __future__ import annotations

import numpy as np

ROOT = 0
"""What rows give as the parent of those below the root."""

NODE_ROW = np.dtype(
    [
        ("node", "<i8"),
        ("parent", "<i8"),
        ("tokens", "<i8"),
        ("bytes", "<i8"),
        ("pages", "<i4"),
        ("trimmed", "<i4"),
        ("demoted", "<i4"),
        ("host", "<i4"),
        ("stored", "?"),
        ("hits", "<i4"),
        ("locked", "?"),
        ("used", "<f8"),
        ("digest", "<u8"),
    ]
)
"""``bytes`` are physical, with table entries; ``trimmed``, ``demoted`` and ``host`` are pages, the last those that host
memory has too; ``stored`` says whether the store was given the node; ``used`` is SGLang's counter of accesses at the
last use; ``digest`` stands for the prefix up to the node's first page and says nothing about its tokens."""
