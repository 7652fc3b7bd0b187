"""LoRA without CUDA: nothing asks for page-locked memory, and what the torch backend cannot run is refused; names of
adapters follow what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.lora.backend.base_backend import BaseLoRABackend
from sglang.srt.lora.backend.torch_backend import TorchNativeLoRABackend
from sglang.srt.lora.lora_registry import LoRARef
from sglang.srt.plugins.hook_registry import HookRegistry

from leankv_patches import lora_ids, lora_on_cpu

Begin = Callable[[Iterable[str]], None]
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="with CUDA memory can be pinned")


@pytest.fixture
def on_cpu(own_registry: Begin) -> None:
    own_registry([lora_on_cpu.MANAGER, lora_on_cpu.BATCH, lora_on_cpu.TARGETS])
    assert lora_on_cpu.problem() is not None
    lora_on_cpu.install()
    HookRegistry.apply_hooks()
    assert lora_on_cpu.problem() is None


@needs_no_gpu
def test_nothing_is_pinned() -> None:
    with pytest.raises(RuntimeError):
        torch.zeros(2, pin_memory=True)
    with lora_on_cpu.Unpinned():
        made = torch.tensor([1, 2], dtype=torch.int32, pin_memory=True, device="cpu")
        assert made.pin_memory() is made
        assert torch.zeros((2,), dtype=torch.int32, pin_memory=True).tolist() == [0, 0]
    assert made.tolist() == [1, 2]


@needs_no_gpu
def test_a_batch_is_prepared(on_cpu: None) -> None:
    backend = TorchNativeLoRABackend(max_loras_per_batch=2, device=torch.device("cpu"))
    mode = SimpleNamespace(is_idle=lambda: False, is_decode=lambda: True)
    backend.prepare_lora_batch(SimpleNamespace(forward_mode=mode, batch_size=3), [0, 0, 1], [0, 8], [0.0, 2.0], False)
    assert backend.batch_info.seg_lens_cpu.tolist() == [2, 1]
    assert backend.batch_info.lora_ranks_cpu.tolist() == [0, 8]


def _experts(monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    layer = torch.nn.Identity()
    monkeypatch.setattr("sglang.srt.layers.moe.fused_moe_triton.layer.FusedMoE", torch.nn.Identity)
    return torch.nn.Sequential(layer)


def test_adapters_that_cannot_run_are_refused(on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchNativeLoRABackend(max_loras_per_batch=2, device=torch.device("cpu"))
    dense = torch.nn.Sequential(torch.nn.Linear(2, 2))
    backend.validate_lora_targets(base_model=dense, target_modules={"qkv_proj", "down_proj", "embed_tokens"})
    with pytest.raises(ValueError, match="cannot adapt lm_head"):
        backend.validate_lora_targets(base_model=dense, target_modules={"qkv_proj", "lm_head"})
    experts = _experts(monkeypatch)
    backend.validate_lora_targets(base_model=experts, target_modules={"qkv_proj", "o_proj"})
    with pytest.raises(ValueError, match="cannot adapt experts"):
        backend.validate_lora_targets(base_model=experts, target_modules={"gate_up_proj"})


def test_other_backends_are_left_alone(on_cpu: None) -> None:
    class Other(BaseLoRABackend):  # type: ignore[misc]
        name = "triton"

    Other(2, torch.device("cpu")).validate_lora_targets(base_model=None, target_modules={"lm_head"})


@pytest.mark.parametrize(
    ("target", "changed", "says"),
    [(lora_on_cpu.TARGETS, lambda self, model: None, "validate_lora_targets takes")],
)
def test_a_target_with_other_arguments_is_a_problem(
    target: str, changed: Any, says: str, own_registry: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_registry([lora_on_cpu.MANAGER, lora_on_cpu.BATCH, target])
    monkeypatch.setattr(BaseLoRABackend, "validate_lora_targets", changed)
    lora_on_cpu.install()
    HookRegistry.apply_hooks()
    assert says in (lora_on_cpu.problem() or "")


def test_an_adapter_trained_again_is_another_one(own_registry: Begin, tmp_path: Path) -> None:
    own_registry([lora_ids.TARGET])
    assert lora_ids.problem() is not None
    before = LoRARef.deterministic_id("a", "owner/adapter")
    lora_ids.install()
    HookRegistry.apply_hooks()
    assert lora_ids.problem() is None
    assert LoRARef.deterministic_id("a", "owner/adapter") == before
    weights = tmp_path / "adapter_model.safetensors"
    names = []
    for contents in (b"one", b"two", b"one"):
        weights.write_bytes(contents)
        names.append(LoRARef.deterministic_id("a", str(tmp_path)))
    assert names[0] == names[2] != names[1]
    assert LoRARef.deterministic_id("b", str(tmp_path)) != names[0]
    assert len(names[0]) == len(before)
