"""Which layers of a model grow with a context, and live in our pages, and which have a sliding window."""

from __future__ import annotations

from typing import Any

WINDOWED = frozenset(
    {
        "Cohere2ForCausalLM",
        "Cohere2MoeForCausalLM",
        "CwmForCausalLM",
        "Exaone4ForCausalLM",
        "ExaoneMoEForCausalLM",
        "ExaoneMoeForCausalLM",
        "Gemma2ForCausalLM",
        "Gemma3ForCausalLM",
        "Gemma3ForConditionalGeneration",
        "MinistralForCausalLM",
        "Olmo2ForCausalLM",
        "Olmo3ForCausalLM",
        "VaultGemmaForCausalLM",
    }
)
"""Architectures whose class in SGLang has windows by ``layer_types``, and of which it keeps all tokens of all layers.

Other classes have no code for windows, whatever a config.json says: Phi 3, Mistral and Starcoder 2 see everything.
"""
SLIDING = WINDOWED | {
    "GptOssForCausalLM",
    "GraniteMoeSWAForCausalLM",
    "GraniteSWAForCausalLM",
    "LagunaForCausalLM",
    "MellumForCausalLM",
}
"""With those whose windows SGLang gives a pool itself, by ``layer_types`` too."""
PATTERNED = frozenset({"MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM"})
"""Those to which it gives one by ``hybrid_layer_pattern``; layers with a window have heads of their own."""


def text_config(model: Any) -> Any:
    """The part of a model's configuration that is about text; ``model`` is sglang's ModelConfig."""
    return getattr(model, "hf_text_config", None) or model.hf_config


def window_split(model: Any) -> tuple[list[int], list[int]] | None:
    """Ids of the layers with a window and of those without, where SGLang does not say so itself; else None."""
    if model.is_hybrid_swa or not WINDOWED.intersection(model.hf_config.architectures or ()):
        return None
    config = text_config(model)
    kinds = (getattr(config, "layer_types", None) or [])[: config.num_hidden_layers]
    window = getattr(config, "sliding_window", None)
    sliding = [i for i, kind in enumerate(kinds) if kind == "sliding_attention"]
    if not sliding or not window or window >= model.context_len:
        return None
    return sliding, [i for i in range(config.num_hidden_layers) if i not in set(sliding)]


def compressed_layers(model: Any) -> int:
    """How many layers of a model live in our pages."""
    full = getattr(model, "full_attention_layer_ids", None) if getattr(model, "is_hybrid_swa", False) else None
    return model.num_hidden_layers if full is None else len(full)


def window_token_bytes(model: Any, ranks: int) -> int:
    """Bytes of a token in the window pool of one rank; 0 for a model without windows."""
    layers = model.num_hidden_layers - compressed_layers(model)
    if not layers:
        return 0
    heads = -(-int(model.get_swa_num_kv_heads(1)) // ranks)
    return layers * heads * (model.swa_head_dim + model.swa_v_head_dim) * int(model.dtype.itemsize)
