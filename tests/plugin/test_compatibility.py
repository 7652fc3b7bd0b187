"""What LeanKV refuses at the start: every entry of both tables, each with a sentence of its own."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from leankv_sglang.config import PAGE_SIZES
from leankv_sglang.environment import has_accelerator
from leankv_sglang.errors import LeanKVError
from leankv_sglang.plugin.compatibility import (
    FLAG_DEFAULTS,
    FLAGS,
    MODELS,
    check_flags,
    check_model,
    check_offload,
    check_resolved,
    stated_flags,
)

REFUSED_FLAGS: list[tuple[str, Any, str]] = [
    ("page_size", 1, "--page-size must be 64, 128 or 256"),
    ("page_size", 32, "--page-size must be 64, 128 or 256"),
    ("attention_backend", "triton", "leave --attention-backend and its variants out"),
    ("prefill_attention_backend", "fa3", "leave --attention-backend and its variants out"),
    ("decode_attention_backend", "flashinfer", "leave --attention-backend and its variants out"),
    ("radix_cache_backend", "flexkv", "leave --radix-cache-backend out"),
    ("kv_cache_dtype", "fp8_e5m2", "--kv-cache-dtype is decided by --leankv-tiers"),
    ("disaggregation_mode", "prefill", "disaggregation is not supported"),
    ("speculative_algorithm", "EAGLE", "speculative decoding is not supported"),
    ("enable_hierarchical_cache", True, "HiCache"),
    ("enable_lmcache", True, "LMCache"),
    ("enable_unified_cache_external_linker", True, "--leankv-store"),
    ("enable_flexkv", True, "FlexKV"),
    ("enable_hisparse", True, "HiSparse"),
    ("enable_unified_memory", True, "--enable-unified-memory"),
    ("enable_page_major_kv_layout", True, "--enable-page-major-kv-layout"),
    ("enable_memory_saver", True, "--enable-memory-saver"),
    ("rl_on_policy_target", "fsdp", "--rl-on-policy-target"),
    ("enable_two_batch_overlap", True, "--enable-two-batch-overlap"),
    ("enable_pdmux", True, "--enable-pdmux"),
    ("grpc_mode", True, "leave --grpc-mode out"),
    ("smg_grpc_mode", True, "leave --smg-grpc-mode out"),
    ("enable_mis", True, "--enable-mis"),
    ("disable_hybrid_swa_memory", True, "leave --disable-hybrid-swa-memory out"),
    ("dllm_algorithm", "LowConfidence", "diffusion language models"),
    ("encoder_only", True, "--encoder-only"),
    ("enable_torch_compile", True, "--enable-torch-compile"),
    ("kv_canary", "raise", "--kv-canary"),
    ("dcp_size", 2, "--dcp-size"),
    ("attn_cp_size", 2, "--attn-cp-size"),
    ("enable_dp_attention", True, "--enable-dp-attention"),
    ("pp_size", 2, "--pp-size"),
    ("disable_radix_cache", True, "--disable-radix-cache"),
]


class Watched:
    """Remembers which of its attributes were asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values, self.asked = values, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return self._values[name]


def refusing(table: list[Any], checked: Any) -> list[str]:
    """The reasons of all entries that refuse it."""
    return [why for refuses, why in table if refuses(checked)]


def flags(**changes: Any) -> SimpleNamespace:
    return SimpleNamespace(**(FLAG_DEFAULTS | changes))


def test_flags_left_at_their_defaults_are_accepted() -> None:
    check_flags(flags())


@pytest.mark.parametrize("page_size", PAGE_SIZES)
def test_every_page_size_we_have_is_accepted(page_size: int) -> None:
    check_flags(flags(page_size=page_size))


def test_our_own_backend_may_be_named() -> None:
    check_flags(flags(attention_backend="leankv", prefill_attention_backend="leankv"))


@pytest.mark.parametrize(("name", "value", "says"), REFUSED_FLAGS, ids=[f"{f[0]}={f[1]}" for f in REFUSED_FLAGS])
def test_a_flag_is_refused_with_its_own_sentence(name: str, value: Any, says: str) -> None:
    given = flags(**{name: value})
    reasons = refusing(FLAGS, given)
    assert len(reasons) == 1
    assert says in reasons[0]
    with pytest.raises(LeanKVError) as refusal:
        check_flags(given)
    assert str(refusal.value) == f"LeanKV cannot start: {reasons[0]}."
    # The same is seen on the command line, before SGLang is imported.
    flag = f"--{name.replace('_', '-')}"
    stated = stated_flags([flag] if value is True else [flag, str(value), "--port", "1"])
    assert refusing(FLAGS, stated) == reasons


def test_every_entry_of_the_flag_table_is_tested() -> None:
    tested = {why for name, value, _ in REFUSED_FLAGS for why in refusing(FLAGS, flags(**{name: value}))}
    assert tested == {why for _, why in FLAGS}
    assert len(tested) == len(FLAGS), "two entries share a sentence"


def test_every_flag_looked_at_is_one_that_sglang_has() -> None:
    """A field that sglang renamed would pass unseen."""
    watched = Watched(FLAG_DEFAULTS)
    assert refusing(FLAGS, watched) == []
    assert watched.asked == set(FLAG_DEFAULTS)
    found = importlib.util.find_spec("sglang")
    if found is None or found.origin is None:
        pytest.skip("sglang is not installed")
    # Only this list of names: importing sglang takes seconds.
    order = Path(found.origin).parent / "srt" / "arg_groups" / "field_order.py"
    assert watched.asked <= set(runpy.run_path(str(order))["POSITIONAL_FIELD_ORDER"])


def test_what_sglang_turned_off_by_itself_is_refused() -> None:
    resolved = {"disable_radix_cache": False, "attention_backend": "leankv"}
    check_resolved(SimpleNamespace(**resolved))
    with pytest.raises(LeanKVError, match="SGLang has turned the radix cache off"):
        check_resolved(SimpleNamespace(**(resolved | {"disable_radix_cache": True})))
    with pytest.raises(LeanKVError, match="SGLang has chosen the attention backend fa3"):
        check_resolved(SimpleNamespace(**(resolved | {"attention_backend": "fa3"})))


# Models


def model(text: dict[str, Any] | None = None, **fields: Any) -> SimpleNamespace:
    """An sglang ModelConfig of a plain Llama, changed: ``text`` in its Hugging Face configuration, the rest outside."""
    config = SimpleNamespace(**({"model_type": "llama", "num_hidden_layers": 2, "sliding_window": None} | (text or {})))
    plain = {
        "hf_config": config,
        "hf_text_config": config,
        "attention_arch": SimpleNamespace(name="MHA"),
        "is_generation": True,
        "is_encoder_decoder": False,
        "is_hybrid_swa": False,
        "head_dim": 64,
        "v_head_dim": 64,
    }
    return SimpleNamespace(**(plain | fields))


ACCEPTEDMODELS = {
    "llama": model(),
    "qwen2, whose window is off": model({"sliding_window": 32768, "use_sliding_window": False}),
    "qwen3": model({"layer_types": ["full_attention"] * 2, "use_sliding_window": False}),
    "mistral, for whose window SGLang has no code": model({"sliding_window": 4096}),
    "a decoder whose embeddings are asked for": model(
        is_generation=False, embedding_model_spec=SimpleNamespace(attention=SimpleNamespace(value="causal"))
    ),
    "windows between full layers": model(is_hybrid_swa=True, full_attention_layer_ids=[1]),
    "capped": model({"attn_logit_softcapping": 50.0}),
    "values of another width": model(v_head_dim=128),
    "no capping": model({"attn_logit_softcapping": None}),
    "an empty list of layer types": model({"layer_types": None, "layers_block_type": None}),
    "little said of it": SimpleNamespace(hf_config=SimpleNamespace(), hf_text_config=None, is_generation=True),
}

MLA, RECURRENT = "latent attention (MLA)", "recurrent or linear-attention layers"
CHUNKED, SLIDING = "in chunks of its context", "every layer of it has a sliding window"
REFUSEDMODELS: dict[str, tuple[SimpleNamespace, str]] = {
    "embedding": (model(is_generation=False), "encoder or a reward model"),
    "encoder": (
        model(is_generation=False, embedding_model_spec=SimpleNamespace(attention=SimpleNamespace(value="none"))),
        "encoder or a reward model",
    ),
    "encoder-decoder": (model(is_encoder_decoder=True), "encoder-decoder model"),
    "MLA by its rank": (model({"kv_lora_rank": 512}), MLA),
    "MLA by its architecture": (model(attention_arch=SimpleNamespace(name="MLA")), MLA),
    "mamba": (model({"mamba_d_state": 128}), RECURRENT),
    "state space": (model({"ssm_state_size": 16}), RECURRENT),
    "gated delta net": (model({"linear_num_key_heads": 16}), RECURRENT),
    "linear layers": (model({"layer_types": ["linear_attention", "full_attention"]}), RECURRENT),
    "mamba layers": (model({"layers_block_type": ["mamba", "attention"]}), RECURRENT),
    "chunked layers": (model({"layer_types": ["chunked_attention", "full_attention"]}), CHUNKED),
    "chunks": (model(attention_chunk_size=8192), CHUNKED),
    "windows alone": (model(is_hybrid_swa=True, full_attention_layer_ids=[]), SLIDING),
    "keys of other layers": (model({"num_kv_shared_layers": 2}), "the keys and values of others"),
}


@pytest.mark.parametrize("name", ACCEPTEDMODELS)
def test_a_plain_causal_transformer_is_accepted(name: str) -> None:
    check_model(ACCEPTEDMODELS[name])


@pytest.mark.parametrize("name", REFUSEDMODELS)
def test_a_model_is_refused_with_its_own_sentence(name: str) -> None:
    refused, says = REFUSEDMODELS[name]
    reasons = refusing(MODELS, refused)
    assert len(reasons) == 1
    assert says in reasons[0]
    with pytest.raises(LeanKVError) as refusal:
        check_model(refused)
    text = str(refusal.value)
    assert text.startswith(f"LeanKV cannot serve this model: {reasons[0]}.")
    assert ("sglang.launch_server" in text) == has_accelerator()
    assert "\n" not in text


def test_every_entry_of_the_model_table_is_tested() -> None:
    tested = {why for refused, _ in REFUSEDMODELS.values() for why in refusing(MODELS, refused)}
    assert tested == {why for _, why in MODELS}
    assert len(tested) == len(MODELS), "two entries share a sentence"


def test_the_text_part_of_a_larger_model_decides() -> None:
    """A vision-language model keeps its language model's settings apart."""
    text = SimpleNamespace(kv_lora_rank=512)
    with pytest.raises(LeanKVError, match="latent attention"):
        check_model(model(hf_text_config=text))
    check_model(model(hf_config=text))


def test_windows_are_not_kept_beyond_the_device() -> None:
    check_offload(has_windows=False, offloads=True)
    check_offload(has_windows=True, offloads=False)
    with pytest.raises(LeanKVError, match="leave --leankv-store and --leankv-host-memory out"):
        check_offload(has_windows=True, offloads=True)
