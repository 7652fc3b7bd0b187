"""Weights of models that are Llama's by other names, made of Llama's own, which transformers answers for."""

from __future__ import annotations

import re

import torch

from tests.models_served.model import Tensors

HEAD = 32


def _named(tensors: Tensors, names: dict[str, str]) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = re.sub(old, new, name)
        found[name] = tensor.contiguous()
    return found


def exaone(tensors: Tensors) -> Tensors:
    """EXAONE 3: GPT-2's names."""
    names = {
        r"^model\.layers": "transformer.h",
        r"^model\.embed_tokens": "transformer.wte",
        r"^model\.norm": "transformer.ln_f",
        r"self_attn\.o_proj": "attn.attention.out_proj",
        r"self_attn": "attn.attention",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        r"mlp\.gate_proj": "mlp.c_fc_0",
        r"mlp\.up_proj": "mlp.c_fc_1",
        r"mlp\.down_proj": "mlp.c_proj",
    }
    return _named(tensors, names)


def internlm2(tensors: Tensors) -> Tensors:
    """InternLM2: one matrix for a group's queries, its keys and its values."""
    tensors = dict(tensors)
    for i in range(_layers(tensors)):
        at = f"model.layers.{i}.self_attn."
        query, key, value = (tensors.pop(f"{at}{x}_proj.weight") for x in "qkv")
        groups = key.shape[0] // HEAD
        parts = [x.reshape(groups, -1, HEAD, x.shape[-1]) for x in (query, key, value)]
        tensors[f"model.layers.{i}.attention.wqkv.weight"] = torch.cat(parts, 1).reshape(-1, query.shape[-1])
    names = {
        r"self_attn\.o_proj": "attention.wo",
        r"mlp\.gate_proj": "feed_forward.w1",
        r"mlp\.up_proj": "feed_forward.w3",
        r"mlp\.down_proj": "feed_forward.w2",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        r"embed_tokens": "tok_embeddings",
        r"^lm_head": "output",
    }
    return _named(tensors, names)


def baichuan(tensors: Tensors) -> Tensors:
    """Baichuan: queries, keys and values in one matrix."""
    tensors = dict(tensors)
    for i in range(_layers(tensors)):
        at = f"model.layers.{i}.self_attn."
        tensors[f"{at}W_pack.weight"] = torch.cat([tensors.pop(f"{at}{x}_proj.weight") for x in "qkv"])
    return tensors


def qwen(tensors: Tensors) -> Tensors:
    """Qwen 1: one matrix with biases, here of nothing, and GPT-2's names."""
    tensors = dict(tensors)
    for i in range(_layers(tensors)):
        at = f"model.layers.{i}.self_attn."
        packed = torch.cat([tensors.pop(f"{at}{x}_proj.weight") for x in "qkv"])
        tensors[f"transformer.h.{i}.attn.c_attn.weight"] = packed
        tensors[f"transformer.h.{i}.attn.c_attn.bias"] = packed.new_zeros(packed.shape[0])
    names = {
        r"^model\.layers": "transformer.h",
        r"^model\.embed_tokens": "transformer.wte",
        r"^model\.norm": "transformer.ln_f",
        r"self_attn\.o_proj": "attn.c_proj",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        r"mlp\.gate_proj": "mlp.w2",
        r"mlp\.up_proj": "mlp.w1",
        r"mlp\.down_proj": "mlp.c_proj",
    }
    return _named(tensors, names)


def _layers(tensors: Tensors) -> int:
    return 1 + max(int(found[1]) for name in tensors if (found := re.search(r"layers\.(\d+)\.", name)))
