"""Targets: ``Scheduler.process_input_requests`` and ``TokenizerControlMixin.init_communicators`` of sglang 0.5.23.

Reason: what a prefix cache holds has no seam to be asked through. Here messages of our own go over SGLang's sockets: a
scheduler hands those it receives to us, between two steps, and the HTTP process those that come back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leankv_patches import hook

_STEP = "sglang.srt.managers.scheduler.Scheduler.process_input_requests"
_COMMUNICATORS = "sglang.srt.managers.tokenizer_control_mixin.TokenizerControlMixin.init_communicators"
TARGETS: dict[str, list[str] | None] = {_STEP: ["self", "recv_reqs"]}
TOKENIZER_TARGETS: dict[str, list[str] | None] = {_COMMUNICATORS: ["self"]}
"""What is hooked, with its arguments."""


def carry(kinds: Sequence[type]) -> None:
    """Have this process read messages of these kinds, subclasses of SGLang's ``BaseReq``, off its sockets; once."""
    from sglang.srt.managers import io_struct

    if not set(kinds) <= set(io_struct._all_types):
        io_struct.hook_custom_types(*kinds)


def install(kind: type, between: Callable[[Any, Sequence[Any]], None]) -> None:
    """Have ``between(scheduler, messages of this kind)`` called once a step. Call while sglang loads its plugins."""

    def around(original: Callable[..., Any], scheduler: Any, recv_reqs: list[Any]) -> Any:
        ours = [message for message in recv_reqs if isinstance(message, kind)] if recv_reqs else recv_reqs
        if ours:
            recv_reqs = [message for message in recv_reqs if not isinstance(message, kind)]
        result = original(scheduler, recv_reqs)
        between(scheduler, ours)
        return result

    hook.register(_STEP, around, "AROUND")


def problem() -> str | None:
    """A sentence if the scheduler's hook did not take or its target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "what runs between steps")


def install_tokenizer(kind: type, take: Callable[[Any, Any], None]) -> None:
    """Have ``take(manager, message)`` called in a tokenizer manager's process for messages of this kind."""

    def after(_result: None, manager: Any) -> None:
        from sglang.utils import TypeBasedDispatcher

        manager._result_dispatcher += TypeBasedDispatcher([(kind, lambda message: take(manager, message))])

    hook.register(_COMMUNICATORS, after, "AFTER")


def tokenizer_problem() -> str | None:
    """A sentence if the tokenizer manager's hook did not take or its target changed its arguments, else None."""
    return hook.first_problem(TOKENIZER_TARGETS, "answers about the cache")
