"""Kernels in CUDA C++ for NVIDIA GPUs of compute capability 8.0 and up: integer tensor cores over records as they lie.

The source (``csrc/``) is one header a job; a header's kernels at one shape are a unit (``unit``). The ops (``attend``,
``open``, ``commit``, ``shrink``) hand units to a launcher: ``driver`` runs them on a GPU, ``emulated`` on a CPU, with
threads as fibers and a check for races, so that they are tested without a GPU.
"""

from __future__ import annotations

from functools import partial

from leankv_kernels.cuda.attend import attend_committed
from leankv_kernels.cuda.commit import commit_pages
from leankv_kernels.cuda.open import attend_open, merge_states
from leankv_kernels.cuda.shrink import count_blocks, cut_pages, free_pages
from leankv_kernels.cuda.unit import Launcher
from leankv_kernels.ops import Ops


def make_ops(launcher: Launcher, name: str, variant: str = "") -> Ops:
    """The ops as a launcher runs them."""
    return Ops(
        name,
        partial(attend_open, launcher),
        partial(attend_committed, launcher),
        partial(merge_states, launcher),
        partial(commit_pages, launcher),
        partial(free_pages, launcher),
        partial(cut_pages, launcher),
        partial(count_blocks, launcher),
        variant=variant,
    )
