"""Entry point of group ``sglang.srt.plugins``: registers our parts with sglang, in every process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import ModuleType
from typing import Any

from leankv_sglang.config import active_config

_NOISE = {
    "sglang.srt.models.registry": "Ignore import error when loading ",
    # Four hundred resolved flags on one line; /get_server_info has them.
    "sglang.srt.entrypoints.engine": "server_args=",
}


class _Quiet(logging.Filter):
    """Drops messages that start with a prefix."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.prefix = prefix

    def filter(self, record: logging.LogRecord) -> bool:
        """False for a message to drop."""
        return not record.getMessage().startswith(self.prefix)


def register() -> None:
    """Register backend, hooks and patches; without a LeanKV configuration only quiets sglang's import noise."""
    for name, prefix in _NOISE.items():
        logging.getLogger(name).addFilter(_Quiet(prefix))
    if active_config() is None:
        return
    from sglang.srt.arg_groups.choices import add_attention_backend_choices
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.mem_cache.registry import get_radix_cache_factory, register_radix_cache_backend

    add_attention_backend_choices(["leankv"])
    register_attention_backend("leankv")(_create_backend)
    if get_radix_cache_factory("leankv") is None:
        register_radix_cache_backend("leankv", _create_cache)
    register_resolution_hook("handle_attention_backend_compatibility")(_resolve)
    for patch, arguments in scheduler_patches():
        patch.install(*arguments)


def scheduler_patches() -> list[tuple[ModuleType, tuple[Any, ...]]]:
    """Every patch that a scheduler process needs, with what its ``install`` takes."""
    from leankv_patches import (
        cell_size,
        internal_state,
        kv_release,
        output_streamer,
        private_pages,
        row_alloc,
        single_row,
    )
    from leankv_sglang.kvcache.sizing import bytes_per_token
    from leankv_sglang.observability.pool_stats import server_info
    from leankv_sglang.observability.request_stats import echoing_streamer, note_release

    return [
        (cell_size, (bytes_per_token,)),
        (internal_state, (server_info,)),
        (single_row, ()),
        (row_alloc, (_assign_rows,)),
        (kv_release, (note_release,)),
        (output_streamer, (echoing_streamer,)),
        (private_pages, ()),
    ]


def _assign_rows(req_to_token_pool: Any, reqs: list[Any]) -> None:
    # The attention backend keeps its thresholds there; a pool of another engine in this process has none.
    if rows := getattr(req_to_token_pool, "leankv_rows", None):
        rows.assign(reqs)


def _create_backend(runner: Any) -> Any:
    from leankv_sglang.attention.backend import LeanKVBackend

    return LeanKVBackend(runner)


def _create_cache(ctx: Any) -> Any:
    from leankv_sglang.kvcache.tree.radix_cache import create_cache

    return create_cache(ctx)


def _resolve(server_args: Any, previous: Callable[[Any], None]) -> None:
    """Refuse models we cannot serve, before anything is loaded, and settle what depends on the model's shape."""
    from sglang.srt.arg_groups.overrides import declare_resolution, model_config_of, resolving_view
    from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase

    from leankv_sglang.kvcache.sizing import default_max_total_tokens
    from leankv_sglang.plugin.compatibility import check_model

    previous(server_args)
    cfg = resolving_view(server_args)
    if cfg.attention_backend != "leankv":
        return
    for phase in (Phase.DECODE, Phase.PREFILL):
        graphs = with_phase(cfg.cuda_graph_config, phase, backend=Backend.DISABLED)
        declare_resolution(server_args, "leankv", cuda_graph_config=graphs)
    model = model_config_of(server_args)
    check_model(model)
    # The record keeps what the user gave; the view already holds SGLang's own default fraction of the machine.
    if cfg.device == "cpu" and server_args.max_total_tokens is None and server_args.mem_fraction_static is None:
        tokens = default_max_total_tokens(model, cfg.page_size, cfg.tp_size, cfg.dp_size)
        declare_resolution(server_args, "leankv", max_total_tokens=tokens)
