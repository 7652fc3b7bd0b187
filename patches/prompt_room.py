"""Target: ``Scheduler.init_req_max_new_tokens`` of sglang 0.5.23.

Reason: of a prompt that ends within two pages of what the pool holds, SGLang cuts the answer to nothing, and reports
success: HTTP 200 without a token. Whoever asked for tokens gets one, or HTTP 400 with how long a prompt may be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.managers.scheduler.Scheduler.init_req_max_new_tokens"


def limit_answer(original: Callable[[Any, Any], None], scheduler: Any, req: Any) -> None:
    """Cut the answer to what there is room for; a request without any room is ended."""
    from sglang.srt.runtime_context import get_serving

    asked = req.sampling_params.max_new_tokens
    original(scheduler, req)
    if asked == 0 or req.sampling_params.max_new_tokens != 0 or req.to_finish is not None:
        return
    length, longest = len(req.origin_input_ids), longest_prompt(scheduler)
    if get_serving().allow_auto_truncate and longest:
        req.origin_input_ids = req.origin_input_ids[:longest]
        req.sampling_params.max_new_tokens = asked
        return original(scheduler, req)
    req.set_finish_with_abort(
        f"The prompt has {length} tokens, which leaves no room for an answer: "
        f"with this server's memory and this model a prompt may have {longest}."
    )


def longest_prompt(scheduler: Any) -> int:
    """Tokens of the longest prompt that can be answered with one token, by SGLang's own accounts."""
    of_pages = scheduler.max_total_num_tokens - scheduler.page_size - 2
    of_pages -= of_pages % scheduler.page_size
    return int(max(0, min(of_pages, scheduler.max_req_len - 2, scheduler.max_req_input_len - 1)))


def install() -> None:
    """Register the hook. Call while sglang loads its plugins."""
    hook.register(TARGET, limit_answer, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take or its target changed its arguments, else None."""
    return hook.problem(TARGET, "room for an answer", ["self", "req"])
