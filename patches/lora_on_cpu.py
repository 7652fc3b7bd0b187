"""Targets: ``LoRAManager.__init__``, ``TorchNativeLoRABackend.prepare_lora_batch`` and
``BaseLoRABackend.validate_lora_targets`` of sglang 0.5.23, on a machine without an accelerator.

Reason: whatever SGLang's LoRA keeps on the host it keeps in page-locked memory, which only CUDA has, so no server with
adapters starts on a CPU. There the host's memory is the device's, and there is nothing to lock. With that its torch
backend works, and gives a row the same bits for any number of rows, lone ones too; but it takes the rows of lm_head,
which are fewer, for those of all tokens, and has nothing for experts: adapters of these are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from leankv_patches import hook

MANAGER = "sglang.srt.lora.lora_manager.LoRAManager.__init__"
BATCH = "sglang.srt.lora.backend.torch_backend.TorchNativeLoRABackend.prepare_lora_batch"
TARGETS = "sglang.srt.lora.backend.base_backend.BaseLoRABackend.validate_lora_targets"
BACKEND = "torch_native"
"""The one of SGLang's backends that needs no GPU."""
_OF_EXPERTS = {"gate_up_proj", "down_proj"}


class Unpinned(TorchFunctionMode):
    """Within it tensors are made without ``pin_memory``, and pinning one gives it back as it is."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``function``, of torch, without what locks pages."""
        if function is Tensor.pin_memory:
            return args[0]
        return function(*args, **{name: value for name, value in (kwargs or {}).items() if name != "pin_memory"})


def unpinned(original: Callable[..., None], *args: Any, **named: Any) -> None:
    """``original``, whose tensors are pinned only where CUDA is there to do it."""
    if torch.cuda.is_available():
        original(*args, **named)
        return
    with Unpinned():
        original(*args, **named)


def validate(original: Callable[..., None], backend: Any, base_model: Any, target_modules: set[str]) -> None:
    """Refuse adapters that SGLang's torch backend cannot run.

    Raises:
        ValueError: one sentence saying what is in the way.
    """
    original(backend, base_model=base_model, target_modules=target_modules)
    if backend.name != BACKEND:
        return
    if "lm_head" in target_modules:
        raise ValueError("LoRA without a GPU cannot adapt lm_head; give adapters without it.")
    if target_modules & _OF_EXPERTS and _has_experts(base_model):
        raise ValueError("LoRA without a GPU cannot adapt experts; give adapters of attention alone.")


def _has_experts(model: Any) -> bool:
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    return any(isinstance(module, FusedMoE) for module in model.modules())


def install() -> None:
    """Register the hooks. Call while sglang loads its plugins."""
    hook.register(MANAGER, unpinned, "AROUND")
    hook.register(BATCH, unpinned, "AROUND")
    hook.register(TARGETS, validate, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or its target changed its arguments, else None."""
    what = "LoRA without a GPU"
    return (
        hook.problem(MANAGER, what, name="LoRAManager")
        or hook.problem(BATCH, what)
        or hook.problem(TARGETS, what, ["self", "base_model", "target_modules"])
    )
