"""What sglang's platform discovery calls first, in every process: choose the platform before sglang looks at it."""

from __future__ import annotations

import os

from leankv_sglang.config import CONFIG_ENV
from leankv_sglang.environment import has_accelerator, prepare_cpu, unshadow_kernels
from leankv_sglang.plugin.lifeline import hold_on


def activate() -> str | None:
    """Entry point of group ``sglang.srt.platforms``: the qualified name of our platform class, or None.

    Without an accelerator the CPU platform is ours always, so that plain ``sglang.launch_server`` works from the same
    environment; LeanKV itself is on only where the launcher left its configuration in the environment.
    """
    unshadow_kernels()
    if CONFIG_ENV in os.environ:
        hold_on()
    if not has_accelerator():
        prepare_cpu()
        return "leankv_sglang.plugin.platform:LeanKVCpuPlatform"
    if CONFIG_ENV in os.environ:
        return "leankv_sglang.plugin.platform:LeanKVCudaPlatform"
    return None
