"""Where nobody said so: how many tokens the pool has on a CPU, and how many of them the sliding windows."""

from __future__ import annotations

from typing import Any

from leankv_sglang.kvcache.hybrid.sizes import END_EVERY, SGLANG_RATIO, WindowNeed
from leankv_sglang.kvcache.sizing import default_max_total_tokens
from leankv_sglang.models.layer_kinds import text_config, window_token_bytes


def settle_tokens(server_args: Any, cfg: Any, model: Any, stated_ratio: float) -> dict[str, Any]:
    """SGLang's fields that are settled here.

    Args:
        server_args: what the user gave.
        cfg: SGLang's view of what became of it.
        model: its ModelConfig.
        stated_ratio: ``--swa-full-tokens-ratio``, or what SGLang has for it.
    """
    tokens: int | None = server_args.max_total_tokens
    # The record keeps what the user gave; the view already holds SGLang's own default fraction of the machine.
    if cfg.device != "cpu" or (tokens is None and server_args.mem_fraction_static is not None):
        return {}
    shape, need = (model, cfg.page_size, cfg.tp_size, cfg.dp_size), _need(server_args, cfg, model)
    fields: dict[str, Any] = {}
    if need is not None:
        fitting = tokens or min(
            default_max_total_tokens(*shape, windows=need.running + need.ends),
            default_max_total_tokens(*shape, windows=need.running, window_tokens=need.end / END_EVERY),
        )
        if (ratio := need.ratio(fitting)) < SGLANG_RATIO:
            fields, tokens = {"swa_full_tokens_ratio": ratio, "max_total_tokens": fitting}, fitting
    return fields if tokens else {"max_total_tokens": default_max_total_tokens(*shape, window_tokens=stated_ratio)}


def _need(server_args: Any, cfg: Any, model: Any) -> WindowNeed | None:
    """What windows are needed for, unless the user said how much there is of them, or there are none."""
    window = getattr(text_config(model), "sliding_window", None)
    stated = server_args.swa_full_tokens_ratio is not None
    if stated or not window or not window_token_bytes(model, cfg.tp_size):
        return None
    chunk = cfg.chunked_prefill_size if (cfg.chunked_prefill_size or 0) > 0 else model.context_len
    return WindowNeed(window, cfg.page_size, max(1, cfg.max_running_requests // cfg.dp_size), chunk)
