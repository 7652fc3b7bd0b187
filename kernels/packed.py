"""Pages out of a store: what a page is wherever it lies, without anything that is true of one pool alone."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class PackedPages(NamedTuple):
    """Records of n pages in all layers, page by page and in each layer by layer; a record as in the store, less its
    block list, ids and padding to whole blocks.

    The near part lies apart, since it is of use only where a hit ends.
    """

    far: Tensor
    """uint8 ``[bytes]``: records cut to the far level; what is behind the sum of their lengths is nothing."""
    far_bytes: Tensor
    """int64 ``[n, layers]``, bytes of each in ``far``."""
    near: Tensor
    """uint8 ``[bytes]``: what near records hold besides."""
    near_bytes: Tensor
    """int64 ``[n, layers]``, bytes of each in ``near``; 0 for pages at the far level."""
    level: Tensor
    """int64 ``[n]``: ``LEVEL_FAR``, or ``LEVEL_NEAR`` where the near part is here too."""
