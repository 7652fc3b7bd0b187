"""Entry point of group ``sglang.srt.plugins``: registers our parts with sglang, in every process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_sglang.config import NAME, active_config, required_config
from leankv_sglang.noise import ALWAYS, UNDER_LEANKV, quiet
from leankv_sglang.plugin.lifeline import hold_on

LINKER = {"linker": "ServedLinker", "linker_module_path": "leankv_sglang.offload.attach"}
"""What SGLang is told of our linker, as ``--unified-cache-external-linker-config`` would."""


def register() -> None:
    """Register backend, hooks and patches; without a LeanKV configuration only quiets sglang's import noise."""
    quiet(ALWAYS)
    if active_config() is None:
        return
    quiet(UNDER_LEANKV)
    hold_on()
    from sglang.srt.arg_groups.choices import (
        add_attention_backend_choices,
        add_deterministic_attention_backend_choices,
        add_radix_supported_deterministic_attention_backend_choices,
    )
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.mem_cache.registry import get_radix_cache_factory, register_radix_cache_backend

    add_attention_backend_choices([NAME])
    add_deterministic_attention_backend_choices([NAME])
    add_radix_supported_deterministic_attention_backend_choices([NAME])
    register_attention_backend(NAME)(_create_backend)
    if get_radix_cache_factory(NAME) is None:
        register_radix_cache_backend(NAME, _create_cache)
    register_resolution_hook("handle_attention_backend_compatibility")(_resolve)
    register_resolution_hook("handle_hicache")(_link)
    from leankv_patches import between_steps
    from leankv_sglang.observability.live.messages import MESSAGES
    from leankv_sglang.plugin.patches import scheduler_patches

    between_steps.carry(MESSAGES)
    for patch, arguments in scheduler_patches():
        patch.install(*arguments)


def _create_backend(runner: Any) -> Any:
    from leankv_sglang.attention.backend import LeanKVBackend
    from leankv_sglang.plugin.heap_trim import start_trimming
    from leankv_sglang.plugin.selfcheck import check_process, stop_if
    from leankv_sglang.products import cover_products

    check_process(runner.token_to_kv_pool, runner.token_to_kv_pool_allocator)
    if runner.device == "cpu":
        stop_if([said for said in [cover_products(runner.model, runner.dtype)] if said])
        start_trimming()
    return LeanKVBackend(runner)


def _create_cache(ctx: Any) -> Any:
    if required_config().offloads:
        from leankv_sglang.offload.attach import create_cache
    else:
        from leankv_sglang.kvcache.tree.radix_cache import create_cache

    return create_cache(ctx)


def _link(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Have SGLang drive our linker where pages are kept beyond the device; beside a named radix cache it refuses."""
    from sglang.srt.arg_groups.overrides import declare_resolution, resolving_view

    previous(server_args)
    if resolving_view(server_args).attention_backend == NAME and required_config().offloads:
        declare_resolution(
            server_args,
            NAME,
            enable_unified_cache_external_linker=True,
            unified_cache_external_linker_backend="dynamic",
            unified_cache_external_linker_config=LINKER,
        )


def _resolve(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Refuse models we cannot serve, before anything is loaded, and settle what depends on the model's shape."""
    from sglang.srt.arg_groups.overrides import declare_resolution, model_config_of, resolution_result, resolving_view

    from leankv_sglang.plugin.compatibility import check_model, check_offload
    from leankv_sglang.plugin.graphs import settle_graphs
    from leankv_sglang.plugin.window_room import settle_tokens

    previous(server_args)
    cfg = resolving_view(server_args)
    if cfg.attention_backend != NAME:
        return
    model = model_config_of(server_args)
    check_model(model)
    check_offload(bool(getattr(model, "is_hybrid_swa", False)), required_config().offloads)
    settle_graphs(server_args, cfg, model)
    ratio = resolution_result(server_args, "swa_full_tokens_ratio")
    if fields := settle_tokens(server_args, cfg, model, ratio):
        declare_resolution(server_args, NAME, **fields)
