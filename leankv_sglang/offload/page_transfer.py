"""What SGLang's description of a transfer carries besides for our pages: their ids, and what is to be loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sglang.srt.mem_cache.hicache_storage import PoolTransfer

from leankv_kernels.packed import PackedPages
from leankv_sglang.kvcache.ledger import Pages


class FoundPages(NamedTuple):
    """Pages in hand that are to be loaded."""

    packed: PackedPages
    counts: np.ndarray[Any, np.dtype[np.int32]]
    """``[n, COUNTS]``, of this rank."""
    blocks: np.ndarray[Any, np.dtype[np.int32]]
    """``[n, 3]``, at the levels base, far and near, the most of any rank."""
    level: Pages
    """``[n]``, as the ledger has it."""
    prices: Pages
    """``[n]``, units."""


@dataclass
class PageTransfer(PoolTransfer):
    """SGLang's description of a transfer, with the ids of its pages on the host."""

    pages: Pages | None = None
    """int64 ``[n]``."""
    near: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    """bool ``[n]``, pages whose near part is worth keeping: hits end behind them."""
    found: FoundPages | None = None
    """What is to be loaded."""
