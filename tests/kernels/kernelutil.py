"""What the kernel tests share: backends, numbers of examples, and pages committed once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from random import Random
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from leankv_kernels import Ops, RawPages, Tier, available_backends, get_ops
from tests.kernels.draws import (
    HEAD_DIMS,
    INTERPRETED,
    PAIRS,
    Committed,
    commit,
    pair_name,
    random_layout,
    random_tier_maps,
)


class Backend(NamedTuple):
    """A backend under test and where its tensors live."""

    ops: Ops
    device: str


# Without a GPU the interpreter runs Triton's kernels, in a process that test_triton_interpreted.py starts.
TRITON = ["triton"] if INTERPRETED or torch.cuda.is_available() else []
"""The names of the backends in Triton that this process can run."""


def _find(name: str) -> Backend:
    if name not in available_backends():
        pytest.skip(f"this checkout has no backend {name}")
    device = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"
    return Backend(get_ops(device, name), device)


@contextmanager
def backend_named(name: str) -> Iterator[Backend]:
    """A backend on the device it is made for, the cpu kernels at one instruction set; skips what cannot run here."""
    name, _, isa = name.partition("-") if name.startswith("cpu-") else (name, "", "")
    backend = _find(name)
    if not isa:
        yield backend
        return
    from leankv_kernels import cpu

    if isa not in cpu.isas():
        pytest.skip(f"this CPU or this build has no {isa}")
    before = cpu.isa()
    cpu.use_isa(isa)
    yield backend
    cpu.use_isa(before)


def few(examples: int, interpreted: int | None = None) -> settings:
    """The same few examples in every run, however slow the machine; in a fuzz run others, and as many times more as
    the environment says. In the interpreter so many as are said, or a thirtieth.
    """
    more = int(os.environ.get("LEANKV_FUZZ", "0"))
    examples = (interpreted or max(1, examples // 30)) if INTERPRETED else examples * max(1, more)
    return settings(max_examples=examples, deadline=None, derandomize=not more, database=None)


dice = st.builds(Random, st.integers(0, 2**32 - 1))
"""A source of choices per example: unlike single draws, it spreads a few examples evenly over all that may vary."""


@cache
def sample(pair: tuple[Tier, Tier], head_dim: int) -> Committed:
    """Three committed pages at this pair of tiers, of a shape that differs from sample to sample; not to be changed."""
    rng = Random(f"{pair_name(pair)} {head_dim}")
    layout = random_layout(rng, pair, head_dim)
    return commit(layout, random_tier_maps(rng, layout, n=3), rng.randint(0, 10_000))


every_sample = pytest.mark.parametrize(
    "page",
    [pytest.param((pair, head_dim), id=f"{pair_name(pair)}-{head_dim}") for pair in PAIRS for head_dim in HEAD_DIMS],
    indirect=True,
)
"""Runs a test on every pair of tiers with every head_dim, as the fixture ``page``."""


def raw_pages(key: Tensor, value: Tensor, query_heads: int) -> RawPages:
    """Pages ``[U, P, H, D]`` of as many tiles, with nothing observed yet."""
    scores = torch.zeros(key.shape[0], query_heads, key.shape[1], dtype=torch.int32)
    return RawPages(key, value, scores, torch.arange(len(key)))
