"""The shape of a model, as far as its KV cache depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from leankv_sglang.errors import LeanKVError
from leankv_sglang.json_file import read_json

MOST = 4096
"""Of layers, heads and dimensions of a head: more than any model has, and little enough to make tables of."""


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
        ValueError: where no model has such a shape.
    """

    def number(name: str, value: Any) -> int:
        if type(value) is not int or not 0 < value <= MOST:
            raise ValueError(f"{name} is no whole number from 1 to {MOST:,}")
        return value

    layers = number("num_hidden_layers", config["num_hidden_layers"])
    heads = number("num_attention_heads", config["num_attention_heads"])
    kv_heads = number("num_key_value_heads", config.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} KV heads evenly")
    if head_dim := config.get("head_dim"):
        return ModelShape(layers, heads, kv_heads, number("head_dim", head_dim))
    hidden = config["hidden_size"]
    return ModelShape(
        layers, heads, kv_heads, number("hidden_size / num_attention_heads", type(hidden) is int and hidden // heads)
    )


def read_shape(folder: str | Path) -> ModelShape:
    """A model's shape from the ``config.json`` in its folder.

    Raises:
        LeanKVError: where there is none, or it does not say.
    """
    config = read_json(
        Path(folder) / "config.json", lambda why: LeanKVError(f"--model {folder}: its config.json {why}.")
    )
    try:
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        return shape_of(config)
    except (ValueError, KeyError) as error:
        raise LeanKVError(
            f"--model {folder}: its config.json does not give the shape of its cache ({error})."
        ) from error
