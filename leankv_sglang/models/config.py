"""From GGUF metadata to config.json and generation_config.json."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .errors import ModelError
from .gguf_file import GGUFFile
from .shape import MOST

# The texts that llama.cpp, too, takes for the end of a turn or of the text whatever the file declares.
_END_TEXTS = frozenset(
    {"<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>"}
)
_CONTROL = 3  # gguf.TokenType.CONTROL
_ROPE_TENSOR = "rope_freqs.weight"


@dataclass(frozen=True)
class ModelShape:
    """The sizes that every tensor of a Llama or Qwen2 model follows from."""

    layers: int
    hidden: int
    intermediate: int
    query_heads: int
    kv_heads: int
    head_dim: int
    vocab: int


def read_shape(file: GGUFFile) -> ModelShape:
    """Reads the sizes of the model from the metadata of `file`.

    Raises:
        ModelError: one is missing, or the model is not a plain dense Llama or Qwen2.
    """
    hidden = file.arch_int("embedding_length")
    heads = file.arch_int("attention.head_count")
    head_dim = file.arch_int("attention.key_length", hidden // max(heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.arch_int(key, head_dim) != head_dim:
            raise ModelError(f"{file.path} has a {key} other than its head size, which cannot be converted.")
    if file.arch_int("expert_count", 0):
        raise ModelError(f"{file.path} holds a mixture of experts, which cannot be converted.")
    shape = ModelShape(
        layers=file.arch_int("block_count"),
        hidden=hidden,
        intermediate=file.arch_int("feed_forward_length"),
        query_heads=heads,
        kv_heads=file.arch_int("attention.head_count_kv", heads),
        head_dim=head_dim,
        vocab=file.shape("token_embd.weight")[0],
    )
    counts = (shape.layers, shape.query_heads, shape.kv_heads, shape.head_dim)
    if (
        not all(0 < count <= MOST for count in counts)
        or not (shape.hidden and shape.intermediate)
        or heads % shape.kv_heads
        or head_dim % 2
    ):
        raise ModelError(
            f"{file.path} states {shape.layers:,} layers of {hidden:,} and {shape.intermediate:,} units and "
            f"{heads:,} query heads on {shape.kv_heads:,} KV heads of {head_dim:,}, which no model has."
        )
    return shape


def build_config(file: GGUFFile, shape: ModelShape, *, tied: bool) -> dict[str, Any]:
    """Returns the content of config.json, which declares bf16 weights.

    Args:
        tied: the output projection is the embedding.

    Raises:
        ModelError: something is missing, or the rope scaling is not supported.
    """
    llama = file.architecture == "llama"
    rope = _rope_parameters(file, shape.head_dim)
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM" if llama else "Qwen2ForCausalLM"],
        "model_type": file.architecture,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        # Without it transformers suspects any large vocabulary of a Mistral tokenizer bug, and warns.
        "transformers_version": _transformers_version(),
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.query_heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": file.arch_int("context_length"),
        "rms_norm_eps": _short_float(file.arch("attention.layer_norm_rms_epsilon", 1e-5)),
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "use_cache": True,
        "tie_word_embeddings": tied,
        # transformers 5 reads rope_parameters; older readers the two keys after it.
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": None if rope["rope_type"] == "default" else scaling,
    }
    if llama:
        config |= {"attention_bias": False, "mlp_bias": False}
    else:
        config |= {"use_sliding_window": False}
    ends = _end_ids(file)
    config |= _token_ids(file) | ({"eos_token_id": ends[0]} if ends else {})
    return config


def build_generation_config(file: GGUFFile) -> dict[str, Any]:
    """Returns the content of generation_config.json: bos, pad and every id that ends a generation."""
    ends = _end_ids(file)
    return _token_ids(file) | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {})


def _token_ids(file: GGUFFile) -> dict[str, int]:
    keys = {"bos_token_id": "bos_token_id", "pad_token_id": "padding_token_id"}
    found = {name: file.get(f"tokenizer.ggml.{key}") for name, key in keys.items()}
    return {name: int(value) for name, value in found.items() if value is not None}


def _end_ids(file: GGUFFile) -> list[int]:
    """The declared end of sequence first, then other ends of a turn, in id order."""
    declared = [file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    texts, kinds = file.get("tokenizer.ggml.tokens", []), file.get("tokenizer.ggml.token_type", [])
    pairs = enumerate(zip(texts, kinds, strict=True))
    known = [i for i, (text, kind) in pairs if kind == _CONTROL and text in _END_TEXTS]
    return list(dict.fromkeys([int(i) for i in declared if i is not None] + known))


def _rope_parameters(file: GGUFFile, head_dim: int) -> dict[str, Any]:
    theta = _short_float(file.arch("rope.freq_base", 10000.0))
    if not 0 < theta < math.inf:
        raise ModelError(f"{file.path} states a rope base of {theta}, which cannot be converted.")
    kind = file.arch("rope.scaling.type", "none")
    factor = float(file.arch("rope.scaling.factor", file.arch("rope.scale_linear", 1.0)) or 1.0)
    if _ROPE_TENSOR in file.tensors:
        return _llama3_rope(file, theta, head_dim)
    if kind == "linear" or (kind == "none" and factor != 1.0):
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind != "none":
        raise ModelError(
            f"{file.path} uses rope scaling of type {kind!r}; only none, linear and llama3 can be converted."
        )
    return {"rope_type": "default", "rope_theta": theta}


def _llama3_rope(file: GGUFFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Recognizes Llama 3.1's scaling, of which GGUF keeps only the resulting divisor per frequency."""
    stored = [float(x) for x in file.tensors[_ROPE_TENSOR].data]
    if not all(0 < x < math.inf for x in stored):
        raise ModelError(f"{file.path} has rope frequencies that are no positive numbers, which cannot be converted.")
    rope = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": round(max(stored), 4),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_divisors(rope, head_dim)
    if len(stored) != len(expected) or any(abs(a / b - 1) > 1e-3 for a, b in zip(stored, expected, strict=True)):
        raise ModelError(f"{file.path} has rope frequencies that are not those of Llama 3, which cannot be converted.")
    return rope


def llama3_divisors(rope: dict[str, Any], head_dim: int) -> list[float]:
    """Returns what Llama 3.1's rope scaling divides each of the head_dim / 2 frequencies by."""
    old, factor = rope["original_max_position_embeddings"], rope["factor"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    divisors = []
    for i in range(0, head_dim, 2):
        turns = old / (2 * math.pi * rope["rope_theta"] ** (i / head_dim))  # within the original context
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def _transformers_version() -> str:
    try:
        return version("transformers")
    except PackageNotFoundError:
        raise ModelError(
            "Converting a model needs the package `transformers`: run `pip install transformers`."
        ) from None


def _short_float(value: float) -> float:
    """The shortest decimal that has the same float32, so that 9.99999974e-06 reads 1e-05."""
    import numpy as np

    return float(str(np.float32(value)))
