"""How much is measured: on a GPU, and on a CPU to try the same code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LLAMA = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 8}
TINY = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 512}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
CONTEXT = 8192


@dataclass(frozen=True)
class Chat:
    """A load of requests that share system prompts, and the memory it is served from.

    Attributes:
        groups: system prompts.
        per_group: requests of each.
        system, question, output: tokens.
        clients: requests at a time.
        tight: the small pool, as a share of what all prompts take in 16 bits.
        rounds: each from an empty cache.
    """

    groups: int
    per_group: int
    system: int
    question: int
    output: int
    clients: int
    tight: float = 0.4
    rounds: int = 1

    @property
    def distinct(self) -> int:
        """Tokens that differ, outputs included."""
        return self.groups * (self.system + self.per_group * (self.question + self.output))


@dataclass(frozen=True)
class Sizes:
    """Of everything.

    Attributes:
        prompts, low, high, answer: hit against miss: how many prompts, their tokens, tokens of an answer.
        shapes: batch and context of a decode measurement.
        decode: tokens of one.
        rounds: of all systems in turn.
        profile: batch, context and steps of the profile.
        requests: most at a time.
        chat: on the real model.
        llama: the configuration of the model without weights.
        llama_shapes, llama_chat: of it.
        text: characters of text that prompts are cut from, None for all there is.
    """

    prompts: int
    low: int
    high: int
    answer: int
    shapes: tuple[tuple[int, int], ...]
    decode: int
    rounds: int
    profile: tuple[int, int, int]
    requests: int
    chat: Chat
    llama: dict[str, int]
    llama_shapes: tuple[tuple[int, int], ...]
    llama_chat: Chat
    text: int | None = None

    def pool(self, shapes: tuple[tuple[int, int], ...]) -> int:
        """Tokens of a pool for any of these shapes."""
        return max(batch * (context + self.decode + 256) for batch, context in shapes)


GPU = Sizes(
    *(8, 300, 3000, 64),
    shapes=((1, 2048), (8, 2048), (64, 2048), (8, 6144)),
    decode=128,
    rounds=3,
    profile=(8, 2048, 20),
    requests=64,
    chat=Chat(24, 8, 6144, 128, 32, 16, rounds=2),
    llama=LLAMA,
    llama_shapes=((1, 2048), (8, 2048), (8, 6144), (64, 2048)),
    llama_chat=Chat(24, 6, 6144, 128, 16, 16),
)
CPU = Sizes(
    *(2, 150, 300, 4),
    shapes=((1, 130), (2, 130)),
    decode=4,
    rounds=1,
    profile=(1, 130, 3),
    requests=2,
    chat=Chat(2, 2, 256, 20, 2, 2),
    llama=TINY,
    llama_shapes=((2, 130),),
    llama_chat=Chat(2, 2, 256, 20, 2, 2),
    text=20_000,
)


def write_shape(folder: Path, shape: dict[str, int]) -> Path:
    """A folder with a Llama's configuration alone, for ``--load-format dummy``."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16"}
    config |= {"head_dim": shape["hidden_size"] // shape["num_attention_heads"], "max_position_embeddings": CONTEXT}
    config |= {"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu", "tie_word_embeddings": False}
    config |= {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config | shape, indent=1) + "\n")
    return folder
