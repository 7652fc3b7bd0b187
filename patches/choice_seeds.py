"""Target: ``TokenizerManager._send_one_request`` of sglang 0.5.23.

Reason: a request for several choices (``n``) is sent once a choice, each time with the same seed, so that all choices
would be the same text. They share one object of sampling parameters; a hook counts its seed up after each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.managers.tokenizer_manager.TokenizerManager._send_one_request"
DEFAULT_SEED = 42
"""What SGLang gives a request without a seed under ``--enable-deterministic-inference``."""


async def send(original: Callable[[Any, Any], Awaitable[None]], manager: Any, tokenized_obj: Any) -> None:
    """``original``; what is sent next with the same parameters is the next choice, and has the next seed."""
    params = tokenized_obj.sampling_params
    await original(manager, tokenized_obj)
    seed = params.sampling_seed
    if seed is None and manager.server_args.enable_deterministic_inference:
        seed = DEFAULT_SEED
    if seed is not None:
        params.sampling_seed = -(2**63) if seed == 2**63 - 1 else seed + 1


def install() -> None:
    """Register the hook. Call before a tokenizer manager runs."""
    hook.register(TARGET, send, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    return hook.problem(TARGET, "a request's choices", ["self", "tokenized_obj"])
