"""A small random model of the Llama architecture whose heads divide by two, with the real model's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from leankv_sglang.models import ensure_model

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 256, 4, 4, 2, 64, 512


def make_tiny_model(folder: Path) -> Path:
    """Write the model; the same one every time."""
    source, folder = Path(ensure_model(quiet=True)), Path(folder)
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config |= {"num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "intermediate_size": INNER}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for file in source.iterdir():
        if file.name.startswith(("tokenizer", "chat_template", "generation_config", "special_tokens")):
            shutil.copy(file, folder / file.name)
    random = torch.Generator().manual_seed(0)

    def weight(*shape: int, gain: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=random) * gain * shape[-1] ** -0.5).to(torch.bfloat16)

    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    tensors = {"model.embed_tokens.weight": weight(config["vocab_size"], HIDDEN, gain=4), "model.norm.weight": ones}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        tensors |= {
            f"{name}self_attn.q_proj.weight": weight(HEADS * HEAD_DIM, HIDDEN, gain=2),
            f"{name}self_attn.k_proj.weight": weight(KV_HEADS * HEAD_DIM, HIDDEN, gain=2),
            f"{name}self_attn.v_proj.weight": weight(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}self_attn.o_proj.weight": weight(HIDDEN, HEADS * HEAD_DIM),
            f"{name}mlp.gate_proj.weight": weight(INNER, HIDDEN),
            f"{name}mlp.up_proj.weight": weight(INNER, HIDDEN),
            f"{name}mlp.down_proj.weight": weight(HIDDEN, INNER),
            f"{name}input_layernorm.weight": ones.clone(),
            f"{name}post_attention_layernorm.weight": ones.clone(),
        }
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = weight(config["vocab_size"], HIDDEN)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
