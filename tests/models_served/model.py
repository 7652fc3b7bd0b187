"""One tiny random model: what it is made of, and its folders, one to serve and one for transformers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tests.tiny_models import VOCABULARY, tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 4096,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
"""Fields of every configuration whose class has them."""
GAIN = 1.3
"""Of every matrix, so that attention is peaked and answers depend on what was said far before."""
UNTOUCHED = ("A_log", "dt_bias", "D", "inv_freq", "hc_scale", "rotary")
"""Parameters whose own first values make sense, and random ones would not."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Model:
    """A tiny model of one architecture.

    Args:
        config: the name of its configuration's class in transformers.
        fields: of that, in addition to ``COMMON``.
        architecture: the class of SGLang, where it is not the one of transformers: a twin of the same mathematics.
        extra: fields of ``config.json`` that SGLang alone reads.
        renamed: makes the weights of a twin from those of transformers.
        embeds: whether it is an encoder, which generates nothing.
        auto: the class of transformers that makes it.
    """

    config: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    architecture: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    renamed: Callable[[Tensors], Tensors] | None = None
    embeds: bool = False
    auto: str = "AutoModelForCausalLM"

    def build(self, folder: Path) -> Folders:
        """Save it, the same weights every time.

        Args:
            folder: for both folders; it may exist.

        Raises:
            Exception: whatever transformers says when it cannot make it.
        """
        import transformers

        cls = getattr(transformers, self.config)
        known = {one.name for one in dataclasses.fields(cls)}
        config = cls(**{name: value for name, value in COMMON.items() if name in known} | dict(self.fields))
        torch.manual_seed(0)
        model = _drawn(_make(self, config)).to(torch.bfloat16)
        truth = folder / "truth"
        model.save_pretrained(truth)
        tokenizer().save_pretrained(truth)
        if not (self.architecture or self.extra or self.renamed):
            return Folders(truth, truth)
        served = folder / "served"
        served.mkdir(parents=True, exist_ok=True)
        _save_twin(self, truth, served)
        return Folders(served, truth)


@dataclass(frozen=True)
class Folders:
    """Where a model lies: for SGLang, and the same for transformers."""

    served: Path
    truth: Path


def _make(model: Model, config: Any) -> Any:
    import transformers

    cls = getattr(transformers, model.auto)
    # Auto classes have the one, models' own classes the other.
    make = cls.from_config if model.auto.startswith("Auto") else cls._from_config
    return make(config, dtype=torch.float32)


def _drawn(model: Any) -> Any:
    """The model with random weights that mean something, whatever its own first ones are."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # SGLang 0.5.23 leaves out the head's bias (Phi, GPT-J, PhiMoE): zero, so that all else of them is compared.
            if name == "lm_head.bias" or any(part in UNTOUCHED for part in name.split(".")):
                continue
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim < 2:
                weight.add_(noise * 0.1)
            else:
                weight.copy_(noise * GAIN / weight.shape[-1] ** 0.5)
    return model.eval()


def _save_twin(model: Model, truth: Path, served: Path) -> None:
    from safetensors.torch import load_file, save_file

    config = json.loads((truth / "config.json").read_text())
    if model.architecture:
        config["architectures"] = [model.architecture]
    config.update(model.extra)
    (served / "config.json").write_text(json.dumps(config, indent=1))
    tensors = load_file(truth / "model.safetensors")
    save_file(model.renamed(tensors) if model.renamed else tensors, served / "model.safetensors")
    tokenizer().save_pretrained(served)
