"""A random model of Llama's architecture in memory, and random tokens for it."""

from __future__ import annotations

import torch

from leankv_sglang.offline.packed import PackedModel

PAGE = 64
VOCABULARY = 512


def tiny_model(vocabulary: int = VOCABULARY, gain: float = 0.2) -> PackedModel:
    """The same weights every time: 3 layers, 6 query heads, 2 KV heads of 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=gain,
        bos_token_id=None,
        eos_token_id=None,
    )
    return PackedModel(LlamaForCausalLM(config).to(torch.bfloat16), "tiny")


def tokens(count: int, seed: int) -> list[int]:
    """Random tokens."""
    drawn = torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    ids: list[int] = drawn.tolist()
    return ids
