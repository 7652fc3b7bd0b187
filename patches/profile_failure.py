"""Targets: ``SchedulerProfilerManager._profile`` and ``_profile_batch_predicate`` of sglang 0.5.23.

Reason: a profile is written, and a later step of one started, between two batches, where an exception, as of a folder
that cannot be made, ends the scheduler. Here it ends the profile. A folder is made at the start, where somebody hears.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from leankv_patches import hook

_MANAGER = "sglang.srt.managers.scheduler_components.profiler_manager.SchedulerProfilerManager"
_ASKED = f"{_MANAGER}._profile"
_STEP = f"{_MANAGER}._profile_batch_predicate"
TARGETS: dict[str, list[str] | None] = {_ASKED: ["self", "recv_req"], _STEP: ["self", "batch"]}
"""What is hooked, with its arguments."""

logger = logging.getLogger(__name__)


def asked(original: Callable[..., Any], manager: Any, recv_req: Any) -> Any:
    """Start or stop a profile, or say why that cannot be."""
    from sglang.srt.managers.io_struct import ProfileReqOutput

    try:
        if recv_req.output_dir:
            Path(recv_req.output_dir).expanduser().mkdir(parents=True, exist_ok=True)
        return original(manager, recv_req)
    except Exception as error:
        logger.exception("A profile is given up.")
        _give_up(manager)
        return ProfileReqOutput(success=False, message=f"The profile failed ({type(error).__name__}): {error}.")


def step(original: Callable[..., Any], manager: Any, batch: Any) -> None:
    """What a profile does before a batch; the batch is computed in any case."""
    try:
        original(manager, batch)
    except Exception:
        logger.exception("A profile is given up.")
        _give_up(manager)


def _give_up(manager: Any) -> None:
    """As if none had been asked for."""
    profiler = getattr(manager, "torch_profiler", None)
    # One that is stopped already, or never began, says so.
    with suppress(Exception):
        if profiler is not None:
            profiler.stop()
    manager.__post_init__()


def install() -> None:
    """Register the hooks. Call while sglang loads its plugins."""
    hook.register(_ASKED, asked, "AROUND")
    hook.register(_STEP, step, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "profiles that fail")
