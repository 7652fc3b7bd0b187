"""The table of patches: what is hooked into a scheduler process, where no seam of sglang reaches."""

from __future__ import annotations

from types import ModuleType
from typing import Any


def scheduler_patches() -> list[tuple[ModuleType, tuple[Any, ...]]]:
    """Every patch that a scheduler process needs, with what its ``install`` takes."""
    from leankv_patches import (
        between_steps,
        cell_size,
        control_failure,
        greedy_rows,
        hybrid_pools,
        internal_state,
        invariant_ops,
        kv_release,
        lora_ids,
        lora_on_cpu,
        nccl_choice,
        output_penalties,
        output_streamer,
        pool_budget,
        private_pages,
        profile_failure,
        prompt_room,
        replay_rows,
        request_failure,
        row_alloc,
        seeded_sampling,
        single_row,
        start_failure,
        stop_regex,
        window_layers,
    )
    from leankv_sglang.attention.row_thresholds import assign_rows
    from leankv_sglang.kvcache.sizing import bytes_per_token, memory_for_pages
    from leankv_sglang.models.layer_kinds import window_split
    from leankv_sglang.observability.live.messages import LeanKVAsk
    from leankv_sglang.observability.live.scheduler.observer import observe
    from leankv_sglang.observability.pool_stats import server_info
    from leankv_sglang.observability.request_stats import note_release, reporting_streamer
    from leankv_sglang.plugin.faults import report
    from leankv_sglang.plugin.platform import hybrid_classes

    return [
        (cell_size, (bytes_per_token,)),
        (pool_budget, (memory_for_pages,)),
        (window_layers, (window_split,)),
        (hybrid_pools, (hybrid_classes, bytes_per_token)),
        (internal_state, (server_info,)),
        (between_steps, (LeanKVAsk, observe)),
        (nccl_choice, ()),
        (lora_ids, ()),
        (lora_on_cpu, ()),
        (single_row, ()),
        (invariant_ops, ()),
        (seeded_sampling, ()),
        (greedy_rows, ()),
        (output_penalties, ()),
        (row_alloc, (assign_rows,)),
        (replay_rows, ()),
        (kv_release, (note_release,)),
        (output_streamer, (reporting_streamer,)),
        (private_pages, ()),
        (prompt_room, ()),
        (request_failure, ()),
        (control_failure, ()),
        (profile_failure, ()),
        (start_failure, (report,)),
        (stop_regex, ()),
    ]
