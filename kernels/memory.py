"""Main memory: large pages for what kernels read here and there."""

from __future__ import annotations

import ctypes
import mmap
import sys

from torch import Tensor


def prefer_huge_pages(x: Tensor) -> None:
    """Ask the operating system to back a large CPU tensor with huge pages, before it is first written.

    Records lie all over the pool, so with small pages nearly every one costs misses of the address cache. Advice only:
    where the system declines, nothing changes but speed. Tensors on other devices are left alone.
    """
    if x.device.type != "cpu" or not sys.platform.startswith("linux"):
        return
    start = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    length = (x.data_ptr() + x.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_HUGEPAGE)
