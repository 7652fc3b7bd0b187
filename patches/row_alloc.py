"""Targets: ``ReqToTokenPool.alloc``, ``ReqToTokenPool.alloc_aux_to_lengths`` and ``ForwardBatch.init_new`` of sglang
0.5.23.

Reason: what is known of request rows on the host, which SGLang tells nobody.

- Pages are committed with their request's thresholds, and a forward knows requests by their rows only. SGLang offers a
  callback for rows (``register_on_alloc_rows``) that does not say for which requests.
- New slots are allocated for a batch and written into its rows by a kernel. ``alloc_aux_to_lengths`` is called behind
  that with the rows on the host; its own seam (``attach_aux_cache``) would take the pool's capacity over as well.
- ``ForwardBatch.req_pool_indices_cpu`` is filled for extends alone, though the batch keeps it in decode as well.
  Reading rows from the device instead waits for the forward under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.alloc"
WRITTEN = "sglang.srt.mem_cache.memory_pool.ReqToTokenPool.alloc_aux_to_lengths"
BATCH = "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new"
TARGETS = (TARGET, WRITTEN, BATCH)
LISTENER = "leankv_rows"
"""Attribute of a row pool: who is told of its rows (``begin(reqs)``, ``extended(rows)``), if anybody."""


def install(given: Callable[[Any, list[Any]], None]) -> None:
    """Have ``given(pool, reqs)`` called when requests have got their rows, and a pool's listener told of that and of
    slots written. Call while sglang loads its plugins."""

    def alloc(result: Any, pool: Any, reqs: list[Any]) -> None:
        if result is not None:
            given(pool, reqs)
            if (listener := getattr(pool, LISTENER, None)) is not None:
                listener.begin(reqs)

    def written(_result: Any, pool: Any, *, req_pool_indices_cpu: Any, target_seq_lens_cpu: Any) -> None:
        if (listener := getattr(pool, LISTENER, None)) is not None:
            listener.extended(req_pool_indices_cpu)

    def batch(result: Any, _cls: Any, batch: Any, *_: Any, **__: Any) -> Any:
        if result.forward_mode.is_decode():
            result.req_pool_indices_cpu = getattr(batch, "req_pool_indices_cpu", None)
        return result

    hook.register(TARGET, alloc, "AFTER")
    hook.register(WRITTEN, written, "AFTER")
    hook.register(BATCH, batch, "AFTER")


def problem() -> str | None:
    """A sentence if a hook did not take or its target changed its arguments, else None."""
    found = (
        hook.problem(TARGET, "the allocation of request rows", ["self", "reqs"]),
        hook.problem(WRITTEN, "slots of request rows", ["self", "req_pool_indices_cpu", "target_seq_lens_cpu"]),
        hook.problem(BATCH, "a batch's request rows"),
    )
    return next((sentence for sentence in found if sentence), None)
