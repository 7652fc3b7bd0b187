"""Tiny GGUF files with known weights, and a cache of their own for every test that asks for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, dequantize, quantize

F32 = GGMLQuantizationType.F32
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


@dataclass
class Sample:
    """What to write into a tiny GGUF file, and, once written, what a conversion of it must hold."""

    architecture: str = "llama"
    kind: GGMLQuantizationType = F32
    output: str = "none"  # none, same, unrelated, or finer: the embedding again as Q8_0
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    tokenizer: bool = False
    pre: str = "smollm"
    metadata: dict[str, Any] = field(default_factory=dict)  # added to, or replacing, the keys written by default
    more_tensors: dict[str, np.ndarray] = field(default_factory=dict)
    without: str = ""  # a tensor to leave out
    expected: dict[str, np.ndarray] = field(default_factory=dict)  # Hugging Face name -> float32

    inner = 96

    def write(self, path: Path) -> Path:
        """Writes the file and fills `expected`."""
        rng = np.random.default_rng(0)
        tokens, merges = byte_level_vocabulary()
        vocab = len(tokens)
        writer = GGUFWriter(path, self.architecture)
        for key, value in (self._sizes(vocab) | (self._tokens(tokens, merges) if self.tokenizer else {})).items():
            _add(writer, key, value)

        def add(name: str, source: str, *shape: int, permuted_heads: int = 0) -> np.ndarray:
            weight = rng.standard_normal(shape).astype(np.float32)
            self._add_tensor(writer, source, weight, permuted_heads, name)
            return weight

        embedding = add("model.embed_tokens.weight", "token_embd.weight", vocab, self.hidden)
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        llama = self.architecture == "llama"
        for i in range(self.layers):
            there, here = f"blk.{i}.", f"model.layers.{i}."
            add(here + "input_layernorm.weight", there + "attn_norm.weight", self.hidden)
            add(here + "post_attention_layernorm.weight", there + "ffn_norm.weight", self.hidden)
            for letter, rows, heads in (("q", queries, self.heads), ("k", keys, self.kv_heads), ("v", keys, 0)):
                name, source = f"{here}self_attn.{letter}_proj.", f"{there}attn_{letter}."
                add(name + "weight", source + "weight", rows, self.hidden, permuted_heads=heads if llama else 0)
                if not llama:
                    add(name + "bias", source + "bias", rows)
            add(here + "self_attn.o_proj.weight", there + "attn_output.weight", self.hidden, queries)
            add(here + "mlp.gate_proj.weight", there + "ffn_gate.weight", self.inner, self.hidden)
            add(here + "mlp.up_proj.weight", there + "ffn_up.weight", self.inner, self.hidden)
            add(here + "mlp.down_proj.weight", there + "ffn_down.weight", self.hidden, self.inner)
        add("model.norm.weight", "output_norm.weight", self.hidden)
        if self.output == "same":
            self._add_tensor(writer, "output.weight", embedding)
        elif self.output == "unrelated":
            add("lm_head.weight", "output.weight", vocab, self.hidden)
        elif self.output == "finer":
            self._add_tensor(
                writer, "output.weight", embedding, name="model.embed_tokens.weight", kind=GGMLQuantizationType.Q8_0
            )
        for source, values in self.more_tensors.items():
            writer.add_tensor(source, values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _sizes(self, vocab: int) -> dict[str, Any]:
        a = self.architecture
        return {
            f"{a}.block_count": self.layers,
            f"{a}.context_length": 512,
            f"{a}.embedding_length": self.hidden,
            f"{a}.feed_forward_length": self.inner,
            f"{a}.attention.head_count": self.heads,
            f"{a}.attention.head_count_kv": self.kv_heads,
            f"{a}.attention.layer_norm_rms_epsilon": 1e-5,
            f"{a}.rope.freq_base": 50000.0,
            "tokenizer.ggml.bos_token_id": vocab - 2,
            "tokenizer.ggml.eos_token_id": vocab - 1,
        } | self.metadata

    def _tokens(self, tokens: list[str], merges: list[str]) -> dict[str, Any]:
        kinds = [1] * (len(tokens) - len(SPECIALS)) + [3] * len(SPECIALS)
        return {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": self.pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": kinds,
            "tokenizer.ggml.merges": merges,
            "tokenizer.chat_template": TEMPLATE,
        }

    def _add_tensor(
        self,
        writer: GGUFWriter,
        source: str,
        weight: np.ndarray,
        permuted_heads: int = 0,
        name: str = "",
        kind: GGMLQuantizationType | None = None,
    ) -> None:
        kind = F32 if weight.ndim == 1 else kind or self.kind  # llama.cpp keeps vectors in float32
        if name:
            self.expected[name] = dequantize(quantize(weight, kind), kind)
        stored = llama_cpp_permute(weight, permuted_heads) if permuted_heads else weight
        if source != self.without:
            writer.add_tensor(source, quantize(stored, kind), raw_dtype=kind)


def llama_cpp_permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's own converter does to the q and k rows of a Llama."""
    split = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return split.swapaxes(1, 2).reshape(weight.shape)


def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """GPT-2's 256 byte letters, the merge of two blanks, and three special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    return [*letters, "ĠĠ", *SPECIALS], ["Ġ Ġ"]


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


@pytest.fixture
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    home = tmp_path / "home"
    monkeypatch.setenv("LEANKV_HOME", str(home))
    return home


@pytest.fixture
def make_gguf(tmp_path: Path) -> Callable[..., tuple[Path, Sample]]:
    """Returns a function that writes a tiny GGUF file from `Sample`'s fields."""

    def make(name: str = "tiny.gguf", **fields: Any) -> tuple[Path, Sample]:
        sample = Sample(**fields)
        return sample.write(tmp_path / name), sample

    return make
