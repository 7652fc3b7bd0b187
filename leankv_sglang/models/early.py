"""What a model's ``config.json`` says, before SGLang is imported: whether it can be served takes a second to say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from .shape import architectures, text_part

EMBEDS = re.compile(
    r"(ForSequenceClassification|ForTokenClassification|ForRewardModel|RewardModel|EmbeddingModel|ForMaskedLM"
    r"|(Bert|Roberta|Mistral|CLIP|Contriever|Encoder)Model)$"
)
"""Architectures that generate nothing, by the ends of their names."""
WANT_GPU = frozenset(
    {
        "AfmoeForCausalLM",
        "BaichuanForCausalLM",
        "DbrxForCausalLM",
        "Exaone4ForCausalLM",
        "ExaoneMoEForCausalLM",
        "ExaoneMoeForCausalLM",
        "GptOssForCausalLM",
        "Llama4ForCausalLM",
        "Llama4ForConditionalGeneration",
        "Qwen2MoeForCausalLM",
    }
)
"""Architectures that SGLang itself has no way to run on a CPU."""


def early_model(config: Mapping[str, Any]) -> SimpleNamespace:
    """A model as far as its configuration describes it, with the names that sglang's ModelConfig has."""
    part = SimpleNamespace(**text_part(config))
    names = architectures(config)
    return SimpleNamespace(
        hf_config=SimpleNamespace(**config),
        hf_text_config=part,
        is_generation=not any(EMBEDS.search(name) for name in names),
        is_encoder_decoder=config.get("is_encoder_decoder") is True,
        attention_chunk_size=_number(part, "attention_chunk_size"),
    )


def wants_gpu(config: Mapping[str, Any]) -> str | None:
    """The architecture that SGLang cannot run without a GPU, if it is one."""
    return next((name for name in architectures(config) if name in WANT_GPU), None)


def _number(config: Any, name: str) -> int | None:
    value = getattr(config, name, None)
    return value if type(value) is int else None
