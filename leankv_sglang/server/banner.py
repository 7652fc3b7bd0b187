"""The few lines a user sees at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leankv_sglang.compression.build import kernels_for, layout_of
from leankv_sglang.compression.profile import shipped_profile
from leankv_sglang.compression.profile_file import load_profile, measured_ratios
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.kvcache.lasting import calibrated_cost
from leankv_sglang.kvcache.sizing import model_dtype_bytes_per_token, open_page_bytes, page_bytes
from leankv_sglang.models.layer_kinds import compressed_layers, window_token_bytes
from leankv_sglang.models.ranks import query_heads_on
from leankv_sglang.models.shape import say_dims


def banner_lines(server_args: Any, config: LeanKVConfig) -> list[tuple[str, str]]:
    """Name and text of each line, from resolved server arguments."""
    from sglang.srt.arg_groups.overrides import model_config_of, resolution_result, resolved_view

    cfg, model = resolved_view(server_args), model_config_of(server_args)
    layout = layout_of(config, cfg.page_size, model, cfg.tp_size)
    group = query_heads_on(model, cfg.tp_size) // layout.num_kv_heads
    layers, page = compressed_layers(model), cfg.page_size
    per_token = page_bytes(layout, layers) / page
    raw = model_dtype_bytes_per_token(layout, layers)
    ranks = f" on each of {cfg.tp_size} ranks" if cfg.tp_size > 1 else ""
    lines = [
        (
            "model",
            f"{Path(cfg.model_path).name} ({layers} layers, {layout.num_kv_heads} KV heads of "
            f"{say_dims(layout.head_dim, layout.v_head_dim)}{ranks})",
        ),
        *_left_out(config, cfg),
        *_windows(model, cfg, resolution_result(server_args, "swa_full_tokens_ratio")),
        ("LeanKV", config.describe()),
        ("kernels", kernels_for(cfg.device, config, layout, group).describe()),
        ("page", f"{page} tokens, {layout.max_blocks} blocks of {layout.block_bytes} B a layer at most"),
        ("a token", f"{per_token:,.0f} B reserved, {raw:,} B in 16 bits ({raw / per_token:.2f}x)"),
    ]
    if cfg.max_total_tokens:
        pages = cfg.max_total_tokens // page
        bytes_kv = pages * page_bytes(layout, layers)
        rows = (cfg.max_running_requests or 0) + 1
        bytes_open = rows * open_page_bytes(layout, layers, group * layout.num_kv_heads, model.dtype.itemsize)
        lines.append(
            ("KV cache", f"{bytes_kv / 2**20:,.0f} MiB{ranks}: {pages * page:,} tokens when all were just committed")
        )
        if ratio := _measured_ratio(cfg.model_path, config):
            held = int(
                pages * page / calibrated_cost(ratio, layout, layers, group * layout.num_kv_heads, config.near_pages)
            )
            lines.append(("", f"some {held:,} tokens once trimmed ({held * raw / bytes_kv:.1f}x 16 bits)"))
        lines.append(("open pages", f"{bytes_open / 2**20:,.0f} MiB for {rows - 1} running requests"))
    else:
        lines.append(("KV cache", "sized from the free device memory (--mem-fraction-static)"))
    address = f"http://{cfg.host}:{cfg.port}"
    lines += [("address", address), ("live page", f"{address}/leankv")]
    return lines


def _left_out(config: LeanKVConfig, cfg: Any) -> list[tuple[str, str]]:
    """The line about a shipped profile that is of pages of another size, if nothing else says how to compress."""
    if config.profile or config.describe() != LeanKVConfig().describe():
        return []
    shipped = shipped_profile(cfg.model_path)
    if shipped is None or (size := load_profile(str(shipped)).page_size) == cfg.page_size:
        return []
    return [("profile", f"none: the one for this model is of pages of {size}; leave --page-size out to have it")]


def _windows(model: Any, cfg: Any, ratio: float) -> list[tuple[str, str]]:
    """The line about layers with a sliding window, if there are any."""
    each = window_token_bytes(model, cfg.tp_size)
    if not each:
        return []
    layers, tokens = model.num_hidden_layers - compressed_layers(model), cfg.max_total_tokens
    kept = int((tokens or 0) * ratio)
    size = f", {kept * each / 2**20:,.0f} MiB for {kept:,} tokens (--swa-full-tokens-ratio {ratio:.2g})" if kept else ""
    return [("windows", f"{layers} layers more have a sliding window and stay in 16 bits{size}")]


def _measured_ratio(model: str, config: LeanKVConfig) -> float | None:
    """What the point in use of a profile that comes with the package was measured to save."""
    shipped = shipped_profile(model) if config.profile else None
    return measured_ratios(shipped).get(config.profile.split()[-1]) if shipped and config.profile else None


def print_banner(server_args: Any, config: LeanKVConfig) -> None:
    """Print the banner to standard output."""
    lines = banner_lines(server_args, config)
    width = max(len(name) for name, _ in lines)
    print("\nLeanKV beneath SGLang", *(f"  {name:<{width}}  {text}" for name, text in lines), "", sep="\n", flush=True)
