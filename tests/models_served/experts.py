"""Mixtures of experts whose layers all attend to everything."""

from __future__ import annotations

from tests.models_served.model import Model

EXPERTS4 = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
ROUTED4 = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL4 = {"num_local_experts": 4, "num_experts_per_tok": 2}

DBRX = {
    "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
    "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
}

EXPERTS: dict[str, Model] = {
    "mixtral": Model("MixtralConfig", LOCAL4),
    "qwen2-moe": Model("Qwen2MoeConfig", {**EXPERTS4, "shared_expert_intermediate_size": 64}),
    "qwen3-moe": Model("Qwen3MoeConfig", {**EXPERTS4, "norm_topk_prob": True}),
    "olmoe": Model("OlmoeConfig", {**EXPERTS4, "num_key_value_heads": 4, "intermediate_size": 64}),
    "granitemoe": Model("GraniteMoeConfig", {**LOCAL4, "attention_multiplier": 0.1}),
    "granitemoe-shared": Model(
        "GraniteMoeSharedConfig", {**LOCAL4, "attention_multiplier": 0.1, "shared_intermediate_size": 64}
    ),
    "phimoe": Model("PhimoeConfig", LOCAL4, "PhiMoEForCausalLM", {"lm_head_bias": True}),
    "glm4-moe": Model("Glm4MoeConfig", ROUTED4),
    "ernie4.5-moe": Model(
        "Ernie4_5_MoeConfig",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 64,
            "moe_num_shared_experts": 1,
            "tie_word_embeddings": True,
        },
    ),
    "hunyuan-moe": Model(
        "HunYuanMoEV1Config",
        {"num_experts": 4, "moe_topk": 2},
        extra={
            "moe_intermediate_size": 256,
            "num_shared_expert": 1,
            "use_mixed_mlp_moe": True,
            "use_qk_norm": True,
        },
    ),
    "minimax-m2": Model(
        "MiniMaxM2Config",
        LOCAL4,
        extra={"scoring_func": "sigmoid", "use_qk_norm": True, "use_routing_bias": True, "num_mtp_modules": 0},
    ),
    "hunyuan-v3": Model(
        "HYV3Config", EXPERTS4, extra={"route_norm": True, "qk_norm": True, "first_k_dense_replace": 1}
    ),
    "dots1": Model(
        "Dots1Config",
        {**ROUTED4, "n_shared_experts": 1, "first_k_dense_replace": 1, "layer_types": ["full_attention"] * 4},
    ),
    "flex-olmo": Model("FlexOlmoConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "solar-open": Model("SolarOpenConfig", ROUTED4),
    "dbrx": Model(
        "DbrxConfig",
        {"d_model": 128, "n_heads": 4, "n_layers": 4, "max_seq_len": 4096, **DBRX},
        # SGLang's own configuration takes no other fields.
        extra=DBRX,
    ),
}
"""By name."""
