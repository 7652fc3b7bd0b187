"""Models and flags that are not served: one sentence and exit status 2 within seconds of the command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from leankv_sglang.environment import has_accelerator
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.early import WANT_GPU
from leankv_sglang.server.early_checks import check_model, check_served
from tests.sentences import is_one_sentence

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "latent attention": ({"architectures": ["DeepseekV2ForCausalLM"], "kv_lora_rank": 512}, "latent attention"),
    "Qwen3-Next": (
        {"architectures": ["Qwen3NextForCausalLM"], "layer_types": ["linear_attention", "full_attention"]},
        "recurrent or linear-attention layers",
    ),
    "Falcon-H1": ({"architectures": ["FalconH1ForCausalLM"], "mamba_d_state": 16}, "recurrent or linear-attention"),
    "an encoder and a decoder": (
        {"architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True},
        "encoder-decoder",
    ),
    "an encoder": ({"architectures": ["BertModel"]}, "encoder or a reward model"),
    "a reward model": ({"architectures": ["LlamaForSequenceClassification"]}, "encoder or a reward model"),
    "chunks": ({"architectures": ["XForCausalLM"], "attention_chunk_size": 8192}, "in chunks of its context"),
    "keys of other layers": (
        {"architectures": ["Gemma3nForConditionalGeneration"], "text_config": {"num_kv_shared_layers": 10}},
        "the keys and values of others",
    ),
}
SERVED: dict[str, dict[str, Any]] = {
    "Llama": {"architectures": ["LlamaForCausalLM"], "head_dim": 64},
    "MiMo-V2, whose values have another width": {
        "architectures": ["MiMoV2FlashForCausalLM"],
        "head_dim": 192,
        "v_head_dim": 128,
    },
    "nothing is said": {},
    "odd things are said": {"architectures": 7, "text_config": [], "layer_types": None, "head_dim": "64"},
    "Gemma 3": {"architectures": ["Gemma3ForCausalLM"], "layer_types": ["sliding_attention", "full_attention"]},
    "Phi 4 mini": {"architectures": ["Phi3ForCausalLM"], "sliding_window": 262144},
    "GPT-2": {"architectures": ["GPT2LMHeadModel"]},
}


def _folder(folder: Path, config: dict[str, Any]) -> str:
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_is_refused_by_its_configuration(name: str, tmp_path: Path) -> None:
    config, says = REFUSED[name]
    with pytest.raises(LeanKVError, match=says):
        check_served(_folder(tmp_path, config))


def test_nobody_is_told_to_fetch_what_is_refused(tmp_path: Path) -> None:
    for name, (config, says) in REFUSED.items():
        with pytest.raises(LeanKVError, match=says):
            check_model([], _folder(tmp_path, config))
        assert not list(tmp_path.glob("*.safetensors")), name
    with pytest.raises(LeanKVError, match="holds no weights"):
        check_model(["--skip-tokenizer-init"], _folder(tmp_path, SERVED["Llama"]))


def test_windows_are_not_kept_beyond_the_device(tmp_path: Path) -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2, "sliding_window": 512}
    folder = _folder(tmp_path, {"architectures": ["Gemma3ForCausalLM"], **kinds})
    check_served(folder)
    with pytest.raises(LeanKVError, match="leave --leankv-store and --leankv-host-memory out"):
        check_served(folder, offloads=True)


@pytest.mark.parametrize("name", SERVED)
def test_a_model_that_may_be_served_passes(name: str, tmp_path: Path) -> None:
    check_served(_folder(tmp_path, SERVED[name]))


@pytest.mark.parametrize("name", sorted(WANT_GPU))
def test_what_sglang_runs_on_gpus_alone_says_so(name: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, {"architectures": [name]})
    if has_accelerator():
        check_served(folder)
        return
    with pytest.raises(LeanKVError, match=f"SGLang runs {name} on GPUs alone"):
        check_served(folder)


@pytest.mark.e2e
@pytest.mark.parametrize("flags", [("--model-path", "FOLDER"), ("--grpc-mode",), ("--enable-mis",)], ids=" ".join)
def test_the_command_ends_at_once_with_a_sentence(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Sglang is not imported for that, which would take most of ten seconds."""
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    folder = _folder(tmp_path, REFUSED["latent attention"][0])
    command = [sys.executable, "-m", "leankv_sglang.launch_server", *(folder if f == "FOLDER" else f for f in flags)]
    began = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert is_one_sentence(done.stderr.removeprefix("error: ").strip())
    assert "sglang.srt" not in done.stderr
    assert time.monotonic() - began < 30, "an import of sglang, or a wait for a hub, would take as long"
