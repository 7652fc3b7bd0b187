"""The attention shapes that are checked on a GPU, the most important first, and the units that they compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import bench.common.checkout  # noqa: F401
from leankv_kernels import RecordLayout, Tier
from leankv_kernels.cuda.attend import attend_shape
from leankv_kernels.cuda.commit import commit_unit
from leankv_kernels.cuda.open import open_shape
from leankv_kernels.cuda.unit import Unit


class Shape(NamedTuple):
    """Heads of a model, and how its pages are compressed."""

    model: str
    heads: int
    head_dim: int
    group: int
    tiers: str = "k8v4,k4v2"
    page: int = 128
    near: bool = True

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.model} {self.tiers} pages of {self.page}{'' if self.near else ', no near part'}"

    def layout(self) -> RecordLayout:
        """Of its records."""
        high, *mid, low = (Tier(int(name[1]), int(name[3])) for name in self.tiers.split(","))
        middle = mid[0] if mid else None
        return RecordLayout(self.page, self.heads, self.head_dim, high, low, near=self.near, mid=middle)

    def units(self) -> Iterator[Unit]:
        """All that its checks compile."""
        yield commit_unit(self.head_dim, self.page)
        for many in (False, True):
            yield attend_shape(self.layout(), self.group, many).unit
            yield open_shape(self.head_dim, self.group, self.page, many).unit


LLAMA, SMOL = Shape("Llama-3-8B", 8, 128, 4), Shape("SmolLM2", 3, 64, 3)
MAIN = (LLAMA, SMOL, Shape("Qwen2.5-0.5B", 2, 64, 7), Shape("Qwen2.5-7B", 4, 128, 7))
"""Looked at before anything is timed."""
OTHERS = (
    LLAMA._replace(tiers="k4v2,k4v2"),
    LLAMA._replace(tiers="k8v4,k8v4"),
    LLAMA._replace(tiers="k4v2,k4v2", near=False),
    LLAMA._replace(tiers="k8v4,k4v4,k4v2"),
    Shape("Phi-2 like", 2, 80, 1, page=64),
    Shape("Phi-3-mini like", 4, 96, 1),
    Shape("Qwen3.5 hybrid", 2, 256, 8),
    Shape("Gemma-3-4B", 4, 256, 2, page=64),
    Shape("Llama-3-70B", 8, 128, 8),
    LLAMA._replace(page=64),
    LLAMA._replace(page=256),
    SMOL._replace(page=256, tiers="k8v4,k8v2,k4v2"),
    Shape("group 1", 2, 128, 1),
    Shape("group 2", 2, 128, 2, "k8v8,k8v4,k4v4"),
    Shape("group 3", 2, 128, 3, "k8v4,k4v4"),
    Shape("group 5", 2, 128, 5),
    Shape("group 6", 2, 128, 6, "k8v8,k4v4", page=64),
    Shape("group 16", 1, 128, 16),
    Shape("group 2 of 64", 2, 64, 2, "k8v8,k8v8", page=256, near=False),
    Shape("group 8 of 96", 1, 96, 8, page=64),
    Shape("group 7 of 80", 1, 80, 7),
    Shape("group 4 of 256", 1, 256, 4, page=256),
)
TINY = Shape("tiny", 2, 128, 4)
"""Of an emulated check; the tests emulate this shape too, and so it is compiled once."""
COMMON = (Unit("states"), Unit("shrink"), Unit("packing"))
