"""Weights and configuration of converted GGUF files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from leankv_sglang.models import ModelError
from leankv_sglang.models.config import llama3_divisors
from leankv_sglang.models.convert import write_model
from leankv_sglang.models.gguf_file import GGUFFile

KINDS = {kind.name: kind for kind in GGMLQuantizationType}


def converted(gguf: Path, folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    folder.mkdir()
    write_model(GGUFFile(gguf), folder, quiet=True)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def assert_weights(found: dict[str, torch.Tensor], expected: dict[str, np.ndarray]) -> None:
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, torch.from_numpy(expected[name]).bfloat16(), rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("output", ["none", "same", "unrelated"])
def test_weights(make_gguf: Callable[..., Any], tmp_path: Path, architecture: str, kind: str, output: str) -> None:
    gguf, sample = make_gguf(architecture=architecture, kind=KINDS[kind], output=output)
    config, weights = converted(gguf, tmp_path / "out")
    assert_weights(weights, sample.expected)
    assert config["tie_word_embeddings"] == (output != "unrelated")


def test_weights_are_the_same_in_slices(
    make_gguf: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leankv_sglang.models.weights.SLICE_ELEMENTS", 7 * 64)
    gguf, sample = make_gguf(kind=KINDS["Q8_0"])
    assert_weights(converted(gguf, tmp_path / "out")[1], sample.expected)


def test_two_quantizations_of_one_matrix_are_tied_and_the_finer_kept(
    make_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    gguf, sample = make_gguf(kind=KINDS["Q5_0"], output="finer")
    config, weights = converted(gguf, tmp_path / "out")
    assert config["tie_word_embeddings"]
    assert_weights(weights, sample.expected)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_config(make_gguf: Callable[..., Any], tmp_path: Path, architecture: str) -> None:
    gguf, _ = make_gguf(architecture=architecture, tokenizer=True)
    config, _ = converted(gguf, tmp_path / "out")
    assert config["architectures"] == [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[architecture]]
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    loaded = AutoConfig.from_pretrained(tmp_path / "out")
    sizes = {
        "vocab_size": 260,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 258,
        "eos_token_id": 259,
    }
    assert {key: getattr(loaded, key) for key in sizes} == sizes
    assert loaded.rope_parameters == {"rope_type": "default", "rope_theta": 50000.0}
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 258, "eos_token_id": [259, 257]}  # <|endoftext|> ends it as well


def test_transformers_runs_it(make_gguf: Callable[..., Any], tmp_path: Path) -> None:
    gguf, sample = make_gguf(
        heads=2,
        kv_heads=1,
        metadata={
            "llama.attention.head_count": 2,
            "llama.attention.head_count_kv": 1,
            "llama.attention.key_length": 16,
            "llama.attention.value_length": 16,
        },
    )
    converted(gguf, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
    assert model.config.head_dim == 16 != sample.hidden // sample.heads
    assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 260)


def test_linear_rope(make_gguf: Callable[..., Any], tmp_path: Path) -> None:
    gguf, _ = make_gguf(metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0})
    config, _ = converted(gguf, tmp_path / "out")
    assert config["rope_parameters"] == {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0}
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def test_llama3_rope_is_recognized_by_its_divisors(make_gguf: Callable[..., Any], tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    divisors = np.array(llama3_divisors(rope, 16), dtype=np.float32)
    assert divisors.min() == 1
    assert divisors.max() == 8
    gguf, _ = make_gguf(metadata={"llama.rope.freq_base": 500000.0}, more_tensors={"rope_freqs.weight": divisors})
    config, _ = converted(gguf, tmp_path / "out")
    assert config["rope_parameters"] == rope
    inv_freq = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.rotary_emb.inv_freq
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(inv_freq, plain / torch.from_numpy(divisors), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architecture": "gemma3"}, "architecture 'gemma3'; only llama and qwen2"),
        ({"metadata": {"llama.expert_count": 8}}, "mixture of experts"),
        ({"metadata": {"llama.rope.scaling.type": "yarn"}}, "rope scaling of type 'yarn'"),
        ({"metadata": {"llama.rope.dimension_count": 8}}, "rope.dimension_count"),
        ({"metadata": {"llama.attention.head_count_kv": [2, 1]}}, "varies attention.head_count_kv"),
        ({"metadata": {"llama.feed_forward_length": 128}}, "ffn_gate.weight of shape"),
        ({"metadata": {"split.count": 2}}, "one part of a split model"),
        ({"more_tensors": {"blk.0.attn_q.bias": np.zeros(64, np.float32)}}, "blk.0.attn_q.bias"),
        ({"more_tensors": {"rope_freqs.weight": np.full(8, 3.0, np.float32)}}, "not those of Llama 3"),
        ({"without": "blk.1.ffn_up.weight"}, "lacks the tensor blk.1.ffn_up.weight"),
    ],
)
def test_refusals_are_one_clear_sentence(
    make_gguf: Callable[..., Any], tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    gguf, _ = make_gguf(**fields)
    with pytest.raises(ModelError) as caught:
        converted(gguf, tmp_path / "out")
    message = str(caught.value)
    assert words in message
    assert str(gguf) in message
    assert "\n" not in message
    assert message.endswith(".")


@pytest.mark.parametrize("keep", [0.02, 0.1, 0.5, 0.99])
def test_truncated_file(make_gguf: Callable[..., Any], keep: float) -> None:
    gguf, _ = make_gguf(tokenizer=True)
    gguf.write_bytes(gguf.read_bytes()[: int(gguf.stat().st_size * keep)])
    with pytest.raises(ModelError, match="damaged or cut short"):
        GGUFFile(gguf)


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        GGUFFile(tmp_path / "absent.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ModelError, match="is not a GGUF file"):
        GGUFFile(tmp_path / "text.gguf")
