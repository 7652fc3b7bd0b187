"""LoRA adapters of the tiny model, in folders as peft writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

WIDE, QUERIES, KEYS, INNER = 256, 256, 128, 512
"""Channels of the tiny model: hidden, of all query heads, of all KV heads, and of the MLP."""
SHAPES = {
    "self_attn.q_proj": (WIDE, QUERIES),
    "self_attn.k_proj": (WIDE, KEYS),
    "self_attn.v_proj": (WIDE, KEYS),
    "self_attn.o_proj": (QUERIES, WIDE),
    "mlp.gate_proj": (WIDE, INNER),
    "mlp.up_proj": (WIDE, INNER),
    "mlp.down_proj": (INNER, WIDE),
}


def adapter(folder: Path, rank: int, seed: int, modules: tuple[str, ...] = tuple(SHAPES), layers: int = 4) -> Path:
    """A random adapter, strong enough to change what the model says."""
    draw = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(layers):
        for module in modules:
            width, out = SHAPES[module]
            prefix = f"base_model.model.model.layers.{layer}.{module}"
            weights[f"{prefix}.lora_A.weight"] = torch.randn(rank, width, generator=draw) * 0.1
            weights[f"{prefix}.lora_B.weight"] = torch.randn(out, rank, generator=draw) * 0.1
    folder.mkdir()
    save_file(
        {name: weight.to(torch.bfloat16) for name, weight in weights.items()}, folder / "adapter_model.safetensors"
    )
    targets = sorted({module.split(".")[1] for module in modules})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def adapted(model: Path, folder: Path | None) -> Any:
    """The model in float32 with an adapter merged into its weights, or none."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    weights = load_file(folder / "adapter_model.safetensors") if folder else {}
    for name in [name for name in weights if ".lora_A." in name]:
        up, down = weights[name.replace(".lora_A.", ".lora_B.")].float(), weights[name].float()
        target = name.removeprefix("base_model.model.").replace(".lora_A", "")
        whole.get_parameter(target).data += up @ down
    return whole
