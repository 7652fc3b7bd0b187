"""Models whose layers all attend to everything, with keys and values of several heads."""

from __future__ import annotations

from tests.models_served.model import Model
from tests.models_served.twins import baichuan, exaone, internlm2, qwen

MHA = {"num_key_value_heads": 4}
GPT2 = {"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 4096}
EXAONE = {"layer_norm_epsilon": 1e-6, "num_layers": 4, "activation_function": "silu"}


def _llama(head_dim: int) -> Model:
    return Model("LlamaConfig", {"head_dim": head_dim})


DENSE: dict[str, Model] = {
    "llama": Model("LlamaConfig"),
    "llama-mha": Model("LlamaConfig", MHA),
    "llama-mqa": Model("LlamaConfig", {"num_key_value_heads": 1}),
    "llama-tied": Model("LlamaConfig", {"tie_word_embeddings": True}),
    **{f"llama-head{size}": _llama(size) for size in (64, 80, 96, 112, 128, 256)},
    "mistral": Model("MistralConfig", {"sliding_window": None}),
    "ministral3": Model("Ministral3Config"),
    "qwen": Model("LlamaConfig", MHA, "QWenLMHeadModel", {"layer_norm_epsilon": 1e-6, "intermediate_size": 512}, qwen),
    "qwen2": Model("Qwen2Config"),
    "mimo": Model("Qwen2Config", {}, "MiMoForCausalLM"),
    "qwen3": Model("Qwen3Config"),
    "phi": Model("PhiConfig", {**MHA, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}),
    "phi3": Model("Phi3Config", {"sliding_window": 262144}),
    "gemma": Model("GemmaConfig", {"tie_word_embeddings": True}),
    "glm": Model("GlmConfig"),
    "glm4": Model("Glm4Config"),
    "granite": Model(
        "GraniteConfig",
        {"embedding_multiplier": 6.0, "logits_scaling": 0.8, "residual_multiplier": 0.5, "attention_multiplier": 0.1},
    ),
    "minicpm": Model(
        "GraniteConfig",
        # A twin: 12 = scale_emb, sqrt(4) layers of 1.4 = scale_depth, 128 / 64 = hidden_size / dim_model_base.
        {
            "embedding_multiplier": 12.0,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 32**-0.5,
        },
        "MiniCPMForCausalLM",
        {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 64, "model_type": "llama"},
    ),
    "olmo": Model("OlmoConfig", MHA),
    "olmo2": Model("Olmo2Config"),
    "cohere": Model("CohereConfig", {"logit_scale": 0.5, "tie_word_embeddings": True}),
    "cohere-qknorm": Model("CohereConfig", {"logit_scale": 0.5, "tie_word_embeddings": True, "use_qk_norm": True}),
    "stablelm": Model("StableLmConfig", {"use_qkv_bias": True}),
    "gpt-neox": Model("GPTNeoXConfig"),
    "gpt2": Model("GPT2Config", {**GPT2, "tie_word_embeddings": True}),
    "gpt-bigcode": Model("GPTBigCodeConfig", {**GPT2, "tie_word_embeddings": True}),
    "gptj": Model("GPTJConfig", {**GPT2, "rotary_dim": 16}),
    "opt": Model("OPTConfig", {"ffn_dim": 256, "word_embed_proj_dim": 128, "tie_word_embeddings": True}),
    "starcoder2": Model("Starcoder2Config", {"tie_word_embeddings": True}),
    "internlm2": Model("LlamaConfig", {}, "InternLM2ForCausalLM", {"bias": False}, internlm2),
    "internlm3": Model("LlamaConfig", {"attention_bias": False}, "InternLM3ForCausalLM", {"qkv_bias": False}),
    "smollm3": Model("SmolLM3Config", {"no_rope_layers": [1, 1, 1, 0], "tie_word_embeddings": True}),
    "exaone3": Model("LlamaConfig", {}, "ExaoneForCausalLM", EXAONE, exaone),
    "persimmon": Model("PersimmonConfig"),
    "baichuan": Model("LlamaConfig", MHA, "BaichuanForCausalLM", {}, baichuan),
    "xverse": Model("LlamaConfig", MHA, "XverseForCausalLM"),
    "ernie4.5": Model("Ernie4_5Config", {"tie_word_embeddings": True}),
    "ernie4.5-native": Model("Ernie4_5Config", {"tie_word_embeddings": True}, "Ernie4_5_ForCausalLM"),
    "hunyuan": Model("HunYuanDenseV1Config", extra={"use_qk_norm": True}),
    "seed-oss": Model("SeedOssConfig", {"attention_dropout": 0.0, "residual_dropout": 0.0}),
    "apertus": Model("ApertusConfig"),
    "arcee": Model("ArceeConfig"),
    "falcon": Model("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False}),
    "mpt": Model("MptConfig", {"d_model": 128, "n_heads": 4, "n_layers": 4, "max_seq_len": 4096}),
    "bloom": Model("BloomConfig", {"n_head": 4, "n_layer": 4}),
    "nemotron": Model("NemotronConfig"),
    "helium": Model("HeliumConfig"),
    "jais2": Model("Jais2Config"),
    "nanochat": Model("NanoChatConfig"),
    "hrm-text": Model("HrmTextConfig", {"num_layers_per_stack": 2}),
}
"""By name."""
