"""Heads on one of several tensor-parallel ranks, as SGLang deals them out.

A rank has at least one KV head: with fewer heads than ranks, several ranks hold the same one. On a CPU SGLang fills
up instead, with KV heads of zeros and their groups, until all ranks have as many.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from leankv_sglang.environment import has_accelerator

from .shape import text_part


def kv_heads_on(model: Any, ranks: int) -> int:
    """KV heads of a full layer on each of so many ranks; ``model`` is sglang's ModelConfig."""
    return -(-int(model.get_total_num_kv_heads()) // ranks)


def query_heads_on(model: Any, ranks: int) -> int:
    """Query heads of a full layer likewise."""
    heads, kv_heads = int(model.get_num_attention_heads(1)), int(model.get_total_num_kv_heads())
    if has_accelerator() and ranks > kv_heads:
        return max(heads // ranks, 1)
    return heads // kv_heads * kv_heads_on(model, ranks)


def uneven(query_heads: int, kv_heads: int, ranks: int) -> str | None:
    """Why so many ranks cannot share heads without any being made up, or None where they can."""
    if query_heads % ranks:
        return f"{query_heads} query heads cannot be divided by {ranks} ranks"
    if kv_heads % ranks and ranks % kv_heads:
        return f"{kv_heads} KV heads cannot be divided by {ranks} ranks, nor the ranks by them"
    return None


def uneven_model(config: Mapping[str, Any], ranks: int) -> str | None:
    """:func:`uneven` for the layers of a Hugging Face configuration; None too where it does not give their heads."""
    text = text_part(config)
    for kind in ("", "swa_"):
        heads = text.get(f"{kind}num_attention_heads")
        kv_heads = text.get(f"{kind}num_key_value_heads") or heads
        if type(heads) is int and type(kv_heads) is int and min(heads, kv_heads) > 0:
            why = uneven(heads, kv_heads, ranks)
            if why is not None:
                return why
    return None
