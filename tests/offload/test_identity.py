"""What a page's name says of who wrote it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from leankv_sglang.config import LeanKVConfig
from leankv_sglang.offload.attach import ServedLinker

SHAPE: dict[str, Any] = {"layer_num": 2, "head_num": 2, "head_dim": 64, "v_head_dim": 64, "page_size": 64}


def _identity(**changes: Any) -> bytes:
    """Of a server of one rank with such a pool, whatever else it has."""
    ops, store = SimpleNamespace(describe=lambda: "cpu"), SimpleNamespace(blocks=torch.empty(0))
    pool = SimpleNamespace(**SHAPE | changes, model_dtype=torch.bfloat16, ops=ops, store=store)
    linker: Any = SimpleNamespace(pool=pool, group=None, _rank=0, _deterministic=False, _config=LeanKVConfig())
    return ServedLinker._identity(linker, torch.nn.Identity())


def test_every_part_of_a_shape_makes_another_page() -> None:
    """Two shapes may well have records of one length."""
    found = [_identity(), *(_identity(**{name: value * 2}) for name, value in SHAPE.items())]
    assert _identity() == found[0]
    assert len(set(found)) == len(found)
