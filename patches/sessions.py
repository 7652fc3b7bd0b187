"""Target: ``TokenizerManager.open_session`` of sglang 0.5.23.

Reason: what a session is opened with goes to the scheduler as it came: a name of any length, which the tree keeps, a
negative capacity, and a timeout after which the session is gone before it begins.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from leankv_patches import hook
from leankv_patches.request_fields import check_names
from leankv_patches.request_ranges import say

TARGET = "sglang.srt.managers.tokenizer_manager.TokenizerManager.open_session"
MOST = 2**31 - 1
"""Largest capacity, and timeout in seconds."""


async def open_session(
    original: Callable[..., Awaitable[Any]], manager: Any, obj: Any, *args: Any, **named: Any
) -> Any:
    """Open a session.

    Raises:
        ValueError: one sentence saying what it cannot be opened with; the route makes HTTP 400 of it.
    """
    check_names(obj)
    if not 0 <= obj.capacity_of_str_len <= MOST:
        raise ValueError(f"capacity_of_str_len goes from 0 to {MOST}, which {say(obj.capacity_of_str_len)} does not.")
    # Not a number is refused with them.
    if obj.timeout is not None and not 0 < obj.timeout <= MOST:
        raise ValueError(f"timeout is more than 0 s and at most {MOST} s, which {say(obj.timeout)} is not.")
    return await original(manager, obj, *args, **named)


def install() -> None:
    """Register the hook. Call before requests are taken."""
    hook.register(TARGET, open_session, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take or the target changed its arguments, else None."""
    return hook.problem(TARGET, "checks of sessions", ["self", "obj", "request"])
