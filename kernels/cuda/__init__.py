"""Kernels in CUDA C++ for NVIDIA GPUs of compute capability 8.0 and up: integer tensor cores over records as they lie.

The source (``csrc/``) is one header a job; a header's kernels at one shape are a unit (``unit``). The ops (``attend``,
``open``, ``commit``, ``shrink``, ``packing``) hand units to a launcher: ``driver`` runs them on a GPU, ``emulated`` on
a CPU, with threads as fibers and a check for races, so that they are tested without a GPU.
"""

from __future__ import annotations

from leankv_kernels.cuda.attend import attend_committed
from leankv_kernels.cuda.commit import commit_bytes, commit_pages, tier_pages
from leankv_kernels.cuda.open import attend_open, merge_states, write_tokens
from leankv_kernels.cuda.packing import pack_pages, unpack_pages
from leankv_kernels.cuda.shrink import count_pages, cut_pages, free_pages
from leankv_kernels.cuda.unit import Launcher

__all__ = [
    "Launcher",
    "attend_committed",
    "attend_open",
    "commit_bytes",
    "commit_pages",
    "count_pages",
    "cut_pages",
    "free_pages",
    "merge_states",
    "pack_pages",
    "tier_pages",
    "unpack_pages",
    "write_tokens",
]
