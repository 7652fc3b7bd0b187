"""Recurrent hybrids, latent attention and encoders."""

from __future__ import annotations

from tests.models_served.experts import EXPERTS4, ROUTED4
from tests.models_served.model import Model

LINEAR, FULL = "linear_attention", "full_attention"
DELTA = {
    "layer_types": [LINEAR, LINEAR, FULL, LINEAR, FULL],
    "num_hidden_layers": 5,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 64,
    "q_lora_rank": None,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_shared_experts": 1,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
DEEPSEEK = {**LATENT, **ROUTED4, "first_k_dense_replace": 1, "rope_parameters": YARN}
DEEPSEEK_V2 = {"moe_layer_freq": 1, "scoring_func": "softmax", "topk_method": "greedy"}
DEEPSEEK_V3 = {"moe_layer_freq": 1, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
NEMOTRON = {"layers_block_type": ["mamba", "mlp", "attention", "mamba", "mlp", "attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}

OTHERS: dict[str, Model] = {
    "qwen3-next": Model("Qwen3NextConfig", {**DELTA, **EXPERTS4, "shared_expert_intermediate_size": 64}),
    "qwen3.5": Model("Qwen3_5TextConfig", DELTA),
    "qwen3.5-moe": Model("Qwen3_5MoeTextConfig", {**DELTA, **EXPERTS4, "shared_expert_intermediate_size": 64}),
    "falcon-h1": Model("FalconH1Config", {**MAMBA, "mamba_d_ssm": 256}),
    "nemotron-h": Model(
        "NemotronHConfig",
        {
            **NEMOTRON,
            "ssm_state_size": 16,
            "mamba_num_heads": 8,
            "mamba_head_dim": 32,
            "n_groups": 1,
        },
        extra=NEMOTRON,
    ),
    "granite-hybrid": Model(
        "GraniteMoeHybridConfig",
        {
            **MAMBA,
            "layer_types": ["mamba", "attention", "mamba", "attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 64,
            "attention_multiplier": 0.1,
        },
    ),
    "lfm2": Model(
        "Lfm2Config",
        {"layer_types": ["conv", FULL, "conv", FULL], "block_multiple_of": 32, "tie_word_embeddings": True},
    ),
    "lfm2-moe": Model(
        "Lfm2MoeConfig",
        {
            **EXPERTS4,
            "layer_types": ["conv", FULL, "conv", FULL],
            "num_dense_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "jamba": Model(
        "JambaConfig",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "mamba_dt_rank": 8, "mamba_d_state": 16},
    ),
    "mamba": Model("MambaConfig", {"state_size": 16}),
    "mamba2": Model("Mamba2Config", {"num_heads": 8, "head_dim": 32, "state_size": 16, "n_groups": 1}),
    "falcon-mamba": Model("FalconMambaConfig", {"state_size": 16}),
    "zaya": Model("ZayaConfig", {"num_experts": 4, "moe_intermediate_size": 64}),
    "deepseek-v2": Model("DeepseekV2Config", DEEPSEEK, extra=DEEPSEEK_V2),
    "deepseek-v3": Model("DeepseekV3Config", {**DEEPSEEK, "n_group": 1, "topk_group": 1}, extra=DEEPSEEK_V3),
    "minicpm3": Model("MiniCPM3Config", {**LATENT, "q_lora_rank": 64}),
    "glm4-moe-lite": Model(
        "Glm4MoeLiteConfig",
        {**LATENT, **ROUTED4, "q_lora_rank": 64},
        extra={"first_k_dense_replace": 1, "moe_layer_freq": 1},
    ),
    "youtu": Model("YoutuConfig", {**LATENT, "q_lora_rank": 64}),
    "bert": Model("BertConfig", {"pad_token_id": 0}, embeds=True, auto="AutoModel"),
    "xlm-roberta": Model("XLMRobertaConfig", {"pad_token_id": 1}, embeds=True, auto="AutoModel"),
}
"""By name."""
