"""A random model of Llama's architecture in memory, and random tokens for it."""

from __future__ import annotations

from typing import Any

import torch

from leankv_sglang.offline.packed import PackedModel

PAGE = 64
VOCABULARY = 512
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
"""Where the runner is tested: on a GPU too, where there is one."""


def tiny_llama(vocabulary: int, layers: int, heads: int, gain: float) -> Any:
    """A random Llama in float32, the same weights every time; 2 KV heads of 32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32 * heads,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=gain,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def tiny_model(vocabulary: int = VOCABULARY, gain: float = 0.2, device: str = "cpu") -> PackedModel:
    """3 layers, 6 query heads."""
    return PackedModel(tiny_llama(vocabulary, 3, 6, gain).to(device, torch.bfloat16), "tiny")


def tokens(count: int, seed: int) -> list[int]:
    """Random tokens."""
    drawn = torch.randint(VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    ids: list[int] = drawn.tolist()
    return ids
