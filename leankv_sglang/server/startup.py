"""Between the flags and SGLang's own start: defaults, checks, and what depends on the model."""

from __future__ import annotations

import os
from typing import Any

from leankv_sglang.compression.profile_file import Profile
from leankv_sglang.config import DEFAULT_PAGE_SIZE, NAME, active_config
from leankv_sglang.environment import has_accelerator
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.layer_kinds import compressed_layers
from leankv_sglang.models.shape import CacheShape
from leankv_sglang.offload.places import check_places

DEFAULT_CPU_REQUESTS = 32
DEFAULT_GPU_REQUESTS = 128
BIND_ENV = "SGLANG_CPU_OMP_THREADS_BIND"
CPU_LORA_BACKEND = "torch_native"
"""SGLang's others are of Triton."""


def default_fields(server_args: Any, on_cpu: bool) -> dict[str, Any]:
    """SGLang's fields that LeanKV sets where the user left them unset."""
    requests = DEFAULT_CPU_REQUESTS if on_cpu else DEFAULT_GPU_REQUESTS
    defaults = {
        "page_size": DEFAULT_PAGE_SIZE,
        "attention_backend": NAME,
        "radix_cache_backend": NAME,
        # Every request row owns a raw open page, so rows are not free here.
        "max_running_requests": requests,
    }
    return {name: value for name, value in defaults.items() if getattr(server_args, name) is None}


def bind_ranks(ranks: int) -> None:
    """Give each of several ranks on a CPU machine cores of its own, unless the user did.

    SGLang does this by itself only where there is a NUMA node for each.

    Raises:
        LeanKVError: where there are fewer cores than ranks.
    """
    if ranks < 2 or has_accelerator() or BIND_ENV in os.environ:
        return
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < ranks:
        raise LeanKVError(
            f"LeanKV cannot start: {ranks} ranks (--tp-size times --dp-size) want as many cores, and this process may "
            f"use {len(cores)}."
        )
    each = len(cores) // ranks
    groups = [cores[i * each : (i + 1) * each] for i in range(ranks)]
    os.environ[BIND_ENV] = "|".join(",".join(str(core) for core in group) for group in groups)


def apply_fields(server_args: Any, profile: Profile | None) -> None:
    """Check the flags, fill in our defaults, resolve, and check the model against the profile.

    Raises:
        LeanKVError: one sentence for anything LeanKV cannot go with.
    """
    from sglang.srt.arg_groups.overrides import model_config_of, resolved_view

    from leankv_sglang.plugin.compatibility import check_environment, check_flags, check_resolved
    from leankv_sglang.plugin.ranges import check_memory, check_ranges

    check_environment()
    check_flags(server_args)
    bind_ranks((server_args.tp_size or 1) * (server_args.dp_size or 1))
    if profile is not None and server_args.page_size is None:
        server_args.page_size = profile.page_size
    on_cpu = not has_accelerator()
    for name, value in default_fields(server_args, on_cpu).items():
        setattr(server_args, name, value)
    # How much of a prompt came from the cache is what this is for: usage.prompt_tokens_details.cached_tokens.
    server_args.enable_cache_report = True
    # An idle scheduler polls without a pause; on a CPU that is a core which everybody else could use.
    server_args.sleep_on_idle = server_args.sleep_on_idle or on_cpu
    if on_cpu:
        server_args.lora_backend = CPU_LORA_BACKEND
    if server_args.enable_metrics and not server_args.stat_loggers:
        from leankv_sglang.observability.metrics import LeanKVMetricsCollector

        server_args.stat_loggers = {"scheduler": LeanKVMetricsCollector}
    if config := active_config():
        check_places(config)
    check_ranges(server_args)
    server_args.resolve_once()
    check_resolved(resolved_view(server_args))
    check_memory(model_config_of(server_args), resolved_view(server_args))
    if profile is not None:
        model = model_config_of(server_args)
        heads, dims = model.get_total_num_kv_heads(), (model.head_dim, model.v_head_dim)
        shape = CacheShape(compressed_layers(model), heads, *dims)
        profile.check_model(shape, server_args.model_path)
        profile.check_page_size(server_args.page_size)
