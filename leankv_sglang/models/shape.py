"""The shape of a model, as far as its KV cache depends on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from leankv_sglang.errors import LeanKVError


class CacheShape(NamedTuple):
    """What of a model the size of its KV cache, and of tables per KV head, depends on."""

    layers: int
    kv_heads: int
    head_dim: int

    def describe(self) -> str:
        """For people."""
        return f"{self.layers} layers, {self.kv_heads} KV heads, head_dim {self.head_dim}"


class ModelShape(NamedTuple):
    """What of a model attention over its KV cache depends on."""

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int

    @property
    def cache(self) -> CacheShape:
        """The shape less what only queries have."""
        return CacheShape(self.layers, self.kv_heads, self.head_dim)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's 16-bit keys and values over all layers."""
        return 4 * self.layers * self.kv_heads * self.head_dim


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a Hugging Face configuration gives.

    Raises:
        KeyError: where it does not.
    """
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return ModelShape(config["num_hidden_layers"], heads, config.get("num_key_value_heads") or heads, head_dim)


def read_shape(folder: str | Path) -> ModelShape:
    """A model's shape from the ``config.json`` in its folder.

    Raises:
        LeanKVError: where there is none, or it does not say.
    """
    try:
        return shape_of(json.loads((Path(folder) / "config.json").read_text()))
    except (OSError, ValueError, KeyError) as error:
        raise LeanKVError(
            f"--model {folder}: its config.json does not give the shape of its cache ({error})."
        ) from error
