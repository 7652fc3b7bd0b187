"""Target: ``TokenizerManager.configure_logging`` of sglang 0.5.23.

Reason: a level or a format that SGLang does not know is taken, and every request from then on is HTTP 500.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = "sglang.srt.managers.tokenizer_manager.TokenizerManager.configure_logging"
"""What is hooked."""
LEVELS, FORMATS = (0, 1, 2, 3), ("text", "json")
"""What SGLang's own flags take."""


def check(original: Callable[..., Any], manager: Any, obj: Any) -> Any:
    """Configure, unless later requests would fail.

    Raises:
        ValueError: one sentence saying what is wrong.
    """
    for name, known in (("log_requests_level", LEVELS), ("log_requests_format", FORMATS)):
        if (value := getattr(obj, name)) is not None and value not in known:
            raise ValueError(f"{name} is one of {', '.join(map(str, known))}, not {value}.")
    return original(manager, obj)


def install() -> None:
    """Register the hook."""
    hook.register(TARGET, check, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take or its target changed its arguments, else None."""
    return hook.problem(TARGET, "the configuration of logs", ["self", "obj"])
