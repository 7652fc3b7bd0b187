"""Models some or all of whose layers attend to the last tokens alone, or whose attention is otherwise limited."""

from __future__ import annotations

from typing import Any

from tests.models_served.model import Model

WINDOW = 96
SLIDING, FULL = "sliding_attention", "full_attention"
TIED: dict[str, Any] = {"tie_word_embeddings": True}
GEMMA2: dict[str, Any] = {
    "query_pre_attn_scalar": 32,
    # Low enough for caps to matter among random weights.
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 10.0,
    "hidden_act": "gelu_pytorch_tanh",
    "num_hidden_layers": 6,
    "sliding_window": WINDOW,
    # SGLang knows no other order.
    "layer_types": [SLIDING, FULL] * 3,
    **TIED,
}


def hybrid(**fields: Any) -> dict[str, Any]:
    """Fields of 6 layers, two of which see everything."""
    types = [SLIDING, SLIDING, FULL] * 2
    return {"num_hidden_layers": 6, "sliding_window": WINDOW, "layer_types": types, **fields}


WINDOWS: dict[str, Model] = {
    "mistral-window": Model("MistralConfig", {"sliding_window": WINDOW}),
    "ministral": Model("MinistralConfig", hybrid()),
    "phi3-window": Model("Phi3Config", {"sliding_window": WINDOW}),
    "starcoder2-window": Model("Starcoder2Config", {"sliding_window": WINDOW, **TIED}),
    "qwen2-window": Model(
        "Qwen2Config", {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": WINDOW}
    ),
    "gemma2": Model("Gemma2Config", GEMMA2),
    "gemma2-uncapped": Model(
        "Gemma2Config", {**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma3": Model("Gemma3TextConfig", hybrid(query_pre_attn_scalar=32, **TIED)),
    "gemma3n": Model(
        "Gemma3nTextConfig",
        hybrid(
            query_pre_attn_scalar=32,
            num_kv_shared_layers=0,
            vocab_size_per_layer_input=512,
            hidden_size_per_layer_input=32,
            laurel_rank=16,
            activation_sparsity_pattern=[0.0] * 6,
            **TIED,
        ),
    ),
    "gemma4": Model(
        "Gemma4TextConfig",
        hybrid(
            vocab_size_per_layer_input=512,
            hidden_size_per_layer_input=32,
            **TIED,
        ),
        extra={"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 32},
    ),
    "vaultgemma": Model("VaultGemmaConfig", hybrid(query_pre_attn_scalar=32, attn_logit_softcapping=4.0, **TIED)),
    "cohere2": Model("Cohere2Config", hybrid(logit_scale=0.5, **TIED)),
    # SGLang's own configuration knows the flat name alone, which released models have.
    "olmo3": Model("Olmo3Config", hybrid(), extra={"rope_theta": 500000.0}),
    "exaone4": Model("Exaone4Config", hybrid()),
    "granite-swa": Model("GraniteSWAConfig", hybrid(attention_multiplier=0.1, **TIED)),
    "cwm": Model("CwmConfig", hybrid()),
    "llama4": Model(
        "Llama4TextConfig",
        {
            "attention_chunk_size": 128,
            "no_rope_layers": [1, 1, 1, 0],
            "intermediate_size_mlp": 256,
            "num_local_experts": 4,
            "interleave_moe_layer_step": 2,
            "pad_token_id": 0,
        },
        auto="Llama4ForCausalLM",
    ),
    "gpt-oss": Model("GptOssConfig", hybrid(num_local_experts=4, num_experts_per_tok=2, head_dim=64)),
    "granitemoe-swa": Model("GraniteMoeSWAConfig", hybrid(num_local_experts=4, attention_multiplier=0.1)),
    "exaone-moe": Model("ExaoneMoeConfig", hybrid(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)),
    "cohere2-moe": Model("Cohere2MoeConfig", hybrid(num_experts=4, logit_scale=0.5, **TIED)),
    "mellum": Model("MellumConfig", hybrid(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)),
    "laguna": Model(
        "LagunaConfig",
        hybrid(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64),
    ),
    "afmoe": Model(
        "AfmoeConfig", hybrid(num_experts=4, num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=64)
    ),
    "mimo-v2": Model(
        "MiMoV2FlashConfig",
        hybrid(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, head_dim=48, v_head_dim=32),
        extra={
            "hybrid_layer_pattern": [1, 1, 0] * 2,
            "moe_layer_freq": [0, 1, 1, 1, 1, 1],
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_head_dim": 48,
            "swa_v_head_dim": 32,
            "add_swa_attention_sink_bias": True,
            # SGLang takes it for the tokens before the last one.
            "sliding_window_size": WINDOW - 1,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "layernorm_epsilon": 1e-5,
            # As released; SGLang cannot read what transformers makes of it, a dictionary by kinds of layers.
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
            "rope_theta": 5e6,
            "swa_rope_theta": 1e4,
            "partial_rotary_factor": 0.334,
        },
    ),
}
"""By name."""
