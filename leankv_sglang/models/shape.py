"""The shape of a model, as far as its KV cache depends on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from leankv_sglang.errors import LeanKVError
from leankv_sglang.json_file import read_json
from leankv_sglang.models.layer_kinds import PATTERNED, SLIDING

MOST = 4096
"""Of layers, heads and dimensions of a head: more than any model has, and little enough to make tables of."""


@dataclass(frozen=True)
class CacheShape:
    """What of a model the size of its KV cache, and of tables per KV head, depends on.

    Args:
        layers: whose cache grows.
        kv_heads: of each.
        head_dim: of keys.
        v_head_dim: of values; 0 for that of keys.
    """

    layers: int
    kv_heads: int
    head_dim: int
    v_head_dim: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "v_head_dim", self.v_head_dim or self.head_dim)

    def describe(self) -> str:
        """For people."""
        dims = say_dims(self.head_dim, self.v_head_dim)
        return f"{self.layers} layers, {self.kv_heads} KV heads, head_dim {dims}"


@dataclass(frozen=True)
class ModelShape:
    """What of a model attention over its KV cache depends on; see :class:`CacheShape`."""

    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "v_head_dim", self.v_head_dim or self.head_dim)

    @property
    def cache(self) -> CacheShape:
        """The shape less what only queries have."""
        return CacheShape(self.layers, self.kv_heads, self.head_dim, self.v_head_dim)

    @property
    def token_bytes(self) -> int:
        """Bytes of a token's 16-bit keys and values over all layers."""
        return 2 * self.layers * self.kv_heads * (self.head_dim + self.v_head_dim)

    def on_rank(self, ranks: int) -> ModelShape:
        """What one of so many tensor-parallel ranks has of it: at least one KV head."""
        return replace(self, query_heads=-(-self.query_heads // ranks), kv_heads=-(-self.kv_heads // ranks))

    def describe(self) -> str:
        """For people."""
        dims = say_dims(self.head_dim, self.v_head_dim)
        return f"{self.layers} layers, {self.query_heads} query heads on {self.kv_heads} KV heads of {dims}"


def say_dims(head_dim: int, v_head_dim: int) -> str:
    """The width of keys, and of values where theirs is another."""
    return str(head_dim) if v_head_dim == head_dim else f"{head_dim} (values {v_head_dim})"


class WindowShape(NamedTuple):
    """The layers of a model that have a sliding window."""

    layers: int
    tokens: int
    kv_heads: int = 0
    """Of each of these layers; 0 for heads like those of the others."""
    channels: int = 0
    """Of a KV head, keys and values."""

    def on_rank(self, ranks: int) -> WindowShape:
        """What one of so many tensor-parallel ranks has of it."""
        return self._replace(kv_heads=-(-self.kv_heads // ranks))

    def token_bytes(self, shape: ModelShape) -> int:
        """Bytes of a token's 16-bit keys and values in these layers; the model's other layers have a shape."""
        return self.layers * (2 * self.kv_heads * self.channels or shape.token_bytes // shape.layers)


def windows_of(config: Mapping[str, Any]) -> WindowShape | None:
    """The sliding windows of the model of a Hugging Face configuration, where SGLang's class of it has any."""
    found = _windowed(config)
    if found is None:
        return None
    layers, window = found
    own = _window_heads(text_part(config)) if PATTERNED.intersection(architectures(config)) else (0, 0)
    return WindowShape(len(layers), window, *own)


def full_layers(config: Mapping[str, Any]) -> list[int]:
    """Ids of the layers without such a window; raises KeyError where the configuration has no number of layers."""
    found = _windowed(config)
    windowed = set() if found is None else set(found[0])
    return [layer for layer in range(text_part(config)["num_hidden_layers"]) if layer not in windowed]


def _windowed(config: Mapping[str, Any]) -> tuple[list[int], int] | None:
    """Ids of the layers with a window, and its tokens."""
    text, names = text_part(config), set(architectures(config))
    kinds, window = text.get("layer_types"), text.get("sliding_window")
    if PATTERNED & names:
        # Transformers' own class of MiMo-V2 has the fields of others.
        kinds, window = text.get("hybrid_layer_pattern", kinds), text.get("sliding_window_size", window)
    count = text.get("num_hidden_layers")
    if not isinstance(kinds, list) or type(window) is not int or type(count) is not int:
        return None
    if not (SLIDING | PATTERNED) & names:
        return None
    layers = [i for i, kind in enumerate(kinds[:count]) if kind in ("sliding_attention", 1)]
    return (layers, window) if layers else None


def _window_heads(text: Mapping[str, Any]) -> tuple[int, int]:
    names = ("swa_num_key_value_heads", "swa_head_dim", "swa_v_head_dim")
    heads, keys, values = (text.get(name) for name in names)
    if type(heads) is not int or type(keys) is not int:
        return 0, 0
    return heads, keys + (values if type(values) is int else keys)


def architectures(config: Mapping[str, Any]) -> list[str]:
    """Names of the classes that a configuration gives."""
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that is about text."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a Hugging Face configuration gives, of the layers whose cache grows with the context.

    Raises:
        KeyError: where it does not.
        ValueError: where no model has such a shape.
    """

    def number(name: str, value: Any) -> int:
        if type(value) is not int or not 0 < value <= MOST:
            raise ValueError(f"{name} is no whole number from 1 to {MOST:,}")
        return value

    windows, config = windows_of(config), text_part(config)
    layers = number("num_hidden_layers", config["num_hidden_layers"])
    if windows is not None:
        layers = number("layers without a sliding window", layers - windows.layers)
    heads = number("num_attention_heads", config["num_attention_heads"])
    kv_heads = number("num_key_value_heads", config.get("num_key_value_heads") or heads)
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot share {kv_heads} KV heads evenly")
    if head_dim := config.get("head_dim"):
        head_dim = number("head_dim", head_dim)
    else:
        hidden = config["hidden_size"]
        head_dim = number("hidden_size / num_attention_heads", type(hidden) is int and hidden // heads)
    return ModelShape(layers, heads, kv_heads, head_dim, number("v_head_dim", config.get("v_head_dim") or head_dim))


def read_shape(folder: str | Path) -> ModelShape:
    """A model's shape from the ``config.json`` in its folder.

    Raises:
        LeanKVError: where there is none, or it does not say.
    """
    return read_shapes(folder)[0]


def read_shapes(folder: str | Path) -> tuple[ModelShape, WindowShape | None]:
    """:func:`read_shape`, and that of the model's sliding windows; raises likewise."""
    config = read_json(
        Path(folder) / "config.json", lambda why: LeanKVError(f"--model {folder}: its config.json {why}.")
    )
    try:
        if not isinstance(config, dict):
            raise ValueError("it is no JSON object")
        return shape_of(config), windows_of(config)
    except (ValueError, KeyError) as error:
        raise LeanKVError(
            f"--model {folder}: its config.json does not give the shape of its cache ({error})."
        ) from error
