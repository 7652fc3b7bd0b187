"""What LeanKV refuses at the start, each with its own sentence."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from leankv_sglang.config import NAME, PAGE_SIZES
from leankv_sglang.environment import APP_PATH, APP_PATH_ENV, has_accelerator
from leankv_sglang.errors import LeanKVError


def _set(name: str) -> Callable[[Any], bool]:
    return lambda args: bool(getattr(args, name, None))


def _over(name: str, limit: int) -> Callable[[Any], bool]:
    return lambda args: (getattr(args, name, None) or 0) > limit


def _other_backend(args: Any) -> bool:
    names = (args.attention_backend, args.prefill_attention_backend, args.decode_attention_backend)
    return any(n not in (None, NAME) for n in names)


FLAGS: list[tuple[Callable[[Any], bool], str]] = [
    (lambda a: a.page_size is not None and a.page_size not in PAGE_SIZES, "--page-size must be 64, 128 or 256"),
    (_other_backend, "its attention backend is its own; leave --attention-backend and its variants out"),
    (
        lambda a: a.radix_cache_backend not in (None, NAME),
        "its radix cache is its own; leave --radix-cache-backend out",
    ),
    (lambda a: a.kv_cache_dtype not in (None, "auto"), "--kv-cache-dtype is decided by --leankv-tiers; leave it out"),
    (lambda a: a.disaggregation_mode not in (None, "null"), "prefill-decode disaggregation is not supported"),
    (_set("speculative_algorithm"), "speculative decoding is not supported; leave --speculative-algorithm out"),
    (
        _set("enable_hierarchical_cache"),
        "the hierarchical cache (HiCache) is not supported; give --leankv-host-memory or --leankv-store instead",
    ),
    (_set("enable_lmcache"), "LMCache is not supported"),
    (
        _set("enable_unified_cache_external_linker"),
        "its cache linker is its own; give --leankv-store or --leankv-host-memory instead",
    ),
    (_set("enable_flexkv"), "FlexKV is not supported"),
    (_set("enable_hisparse"), "hierarchical sparse attention (HiSparse) is not supported"),
    (_set("enable_unified_memory"), "--enable-unified-memory is not supported; leave it out"),
    (_set("enable_page_major_kv_layout"), "--enable-page-major-kv-layout is not supported; leave it out"),
    (_set("enable_memory_saver"), "--enable-memory-saver is not supported; leave it out"),
    (_set("rl_on_policy_target"), "--rl-on-policy-target is not supported; leave it out"),
    (_set("enable_two_batch_overlap"), "--enable-two-batch-overlap is not supported; leave it out"),
    (_set("enable_pdmux"), "--enable-pdmux is not supported; leave it out"),
    (_set("grpc_mode"), "its server speaks HTTP; leave --grpc-mode out"),
    (_set("smg_grpc_mode"), "its server speaks HTTP; leave --smg-grpc-mode out"),
    (_set("enable_mis"), "multi-item scoring is not supported; leave --enable-mis out"),
    (
        _set("disable_hybrid_swa_memory"),
        "sliding windows have a pool of their own beside its pages; leave --disable-hybrid-swa-memory out",
    ),
    (_set("dllm_algorithm"), "diffusion language models are not supported"),
    (_set("encoder_only"), "--encoder-only is not supported"),
    (_set("enable_torch_compile"), "--enable-torch-compile is not supported"),
    (lambda a: a.kv_canary not in (None, "none", "off", ""), "--kv-canary is not supported"),
    (_over("dcp_size", 1), "decode context parallelism (--dcp-size) is not supported"),
    (_over("attn_cp_size", 1), "context parallelism (--attn-cp-size) is not supported"),
    (_set("enable_dp_attention"), "data-parallel attention (--enable-dp-attention) is not supported"),
    (_over("pp_size", 1), "pipeline parallelism (--pp-size) is not supported yet"),
    (_set("disable_radix_cache"), "--disable-radix-cache turns off what LeanKV is for; use sglang.launch_server"),
]
"""SGLang's flags that are refused: what tells, and why."""


FLAG_DEFAULTS: dict[str, Any] = {
    "page_size": None,
    "attention_backend": None,
    "prefill_attention_backend": None,
    "decode_attention_backend": None,
    "radix_cache_backend": None,
    "kv_cache_dtype": "auto",
    "disaggregation_mode": "null",
    "speculative_algorithm": None,
    "enable_hierarchical_cache": False,
    "enable_lmcache": False,
    "enable_unified_cache_external_linker": False,
    "enable_flexkv": False,
    "enable_hisparse": False,
    "enable_unified_memory": False,
    "enable_page_major_kv_layout": False,
    "enable_memory_saver": False,
    "rl_on_policy_target": None,
    "enable_two_batch_overlap": False,
    "enable_pdmux": False,
    "grpc_mode": False,
    "smg_grpc_mode": False,
    "enable_mis": False,
    "disable_hybrid_swa_memory": False,
    "dllm_algorithm": None,
    "encoder_only": False,
    "enable_torch_compile": False,
    "kv_canary": "none",
    "dcp_size": 1,
    "attn_cp_size": 1,
    "enable_dp_attention": False,
    "pp_size": 1,
    "disable_radix_cache": False,
}
"""What SGLang's arguments hold of what is looked at where the user gave nothing."""


def stated_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Those flags as a command line states them; what is none of them, or no number, is left to SGLang."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name, value in FLAG_DEFAULTS.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            parser.add_argument(flag, action="store_true")
        elif isinstance(value, int) or name == "page_size":
            parser.add_argument(flag, nargs="?", default=value, type=lambda text: int(text) if text.isdigit() else None)
        else:
            parser.add_argument(flag, nargs="?", default=value)
    return parser.parse_known_args(list(argv))[0]


def check_environment() -> None:
    """Check what SGLang reads from the environment.

    Raises:
        LeanKVError: one sentence naming the first variable that cannot go with LeanKV.
    """
    from sglang.srt.environ import envs

    if envs.SGLANG_RUST_SERVER.get():
        raise LeanKVError("LeanKV cannot start: the Rust server is not supported; unset SGLANG_RUST_SERVER.")
    if envs.SGLANG_ENABLE_METADATA_GLUE_GRAPH.get():
        raise LeanKVError(
            "LeanKV cannot start: it plans forwards on the host; unset SGLANG_ENABLE_METADATA_GLUE_GRAPH."
        )
    if os.environ.get(APP_PATH_ENV, APP_PATH) != APP_PATH:
        raise LeanKVError(f"LeanKV cannot start: its HTTP app is its own; unset {APP_PATH_ENV}.")


def check_flags(server_args: Any) -> None:
    """Check SGLang's flags as the user gave them.

    Raises:
        LeanKVError: one sentence naming the first flag that cannot go with LeanKV.
    """
    for refused, why in FLAGS:
        if refused(server_args):
            raise LeanKVError(f"LeanKV cannot start: {why}.")


def check_resolved(server_args: Any) -> None:
    """Check what SGLang made of the flags: it turns features off by itself, with no more than a warning.

    Raises:
        LeanKVError: one sentence naming what LeanKV cannot do without.
    """
    if server_args.disable_radix_cache:
        raise LeanKVError(
            "LeanKV cannot start: SGLang has turned the radix cache off (its log above says why); leave out the flag "
            "that makes it do so."
        )
    if server_args.attention_backend != NAME:
        raise LeanKVError(
            f"LeanKV cannot start: SGLang has chosen the attention backend {server_args.attention_backend} (its log "
            "above says why); leave out the flag that makes it do so."
        )


def _text_config(model: Any) -> Any:
    return getattr(model, "hf_text_config", None) or model.hf_config


def _encodes(model: Any) -> bool:
    pattern = getattr(getattr(model, "embedding_model_spec", None), "attention", None)
    return not getattr(model, "is_generation", True) and getattr(pattern, "value", None) != "causal"


def _is_mla(model: Any) -> bool:
    arch = getattr(model, "attention_arch", None)
    return getattr(arch, "name", "") == "MLA" or getattr(_text_config(model), "kv_lora_rank", None) is not None


def _only_slides(model: Any) -> bool:
    return bool(getattr(model, "is_hybrid_swa", False)) and not getattr(model, "full_attention_layer_ids", None)


def _is_chunked(model: Any) -> bool:
    types = getattr(_text_config(model), "layer_types", None) or []
    return bool(getattr(model, "attention_chunk_size", None)) or any("chunked" in t for t in types)


def _recurs(model: Any) -> bool:
    config = _text_config(model)
    types = getattr(config, "layer_types", None) or getattr(config, "layers_block_type", None) or []
    names = ("mamba_d_state", "ssm_state_size", "linear_num_key_heads")
    return any("linear" in t or "mamba" in t for t in types) or any(getattr(config, n, None) for n in names)


MODELS: list[tuple[Callable[[Any], bool], str]] = [
    (_encodes, "it is an encoder or a reward model"),
    (lambda m: bool(getattr(m, "is_encoder_decoder", False)), "it is an encoder-decoder model"),
    (_is_mla, "it has latent attention (MLA), whose cache LeanKV does not compress"),
    (_recurs, "it has recurrent or linear-attention layers"),
    (_only_slides, "every layer of it has a sliding window, so that nothing grows which could be compressed"),
    (_is_chunked, "it attends in chunks of its context"),
    (
        lambda m: bool(getattr(_text_config(m), "num_kv_shared_layers", None)),
        "some of its layers attend to the keys and values of others",
    ),
]
"""Models that are refused: what tells, and why."""


def check_model(model: Any) -> None:
    """Check a model, given as sglang's ModelConfig or as ``models.early.early_model`` has it.

    Raises:
        LeanKVError: one sentence saying what of the model LeanKV cannot serve.
    """
    for refused, why in MODELS:
        if refused(model):
            # SGLang refuses some of these itself where there is no GPU.
            other = " python -m sglang.launch_server serves it uncompressed." if has_accelerator() else ""
            raise LeanKVError(f"LeanKV cannot serve this model: {why}.{other}")


def check_offload(has_windows: bool, offloads: bool) -> None:
    """Check that pages of a model can be kept beyond the device, where they are to be.

    Raises:
        LeanKVError: one sentence, for a model whose windows would be missing beside its pages.
    """
    if offloads and has_windows:
        raise LeanKVError(
            "LeanKV cannot keep pages of this model beyond the device: it has sliding windows, which are not kept "
            "there; leave --leankv-store and --leankv-host-memory out."
        )
