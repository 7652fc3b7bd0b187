"""Page objects of nobody's pages, for tests of the places that keep them."""

from __future__ import annotations

import random

import numpy as np

from leankv_sglang.offload.page_object import COUNTS, PageName, Part, write_object

IDENTITY, OTHER = bytes(range(16)), bytes(range(1, 17))
LAYERS = 3


def name_of(number: int, part: Part = Part.FAR) -> PageName:
    """The name of a page."""
    return PageName(f"{number:064x}", part)


def object_of(name: PageName, size: int = 200, identity: bytes = IDENTITY) -> bytes:
    """What that page's object may be, always the same."""
    source = random.Random(f"{name}")
    lengths = np.array([source.randrange(size) for _ in range(LAYERS)])
    counts = np.array([source.randrange(100) for _ in range(COUNTS)], np.int32)
    return write_object(name, identity, counts, lengths, memoryview(source.randbytes(int(lengths.sum()))))
