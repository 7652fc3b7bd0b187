"""``--device`` of calibration and evaluation."""

from __future__ import annotations

import pytest
import torch

from leankv_sglang.errors import LeanKVError
from leankv_sglang.offline.device import AUTO, pick_device


@pytest.mark.parametrize(("gpus", "found"), [(0, "cpu"), (2, "cuda")])
def test_the_gpu_is_taken_if_there_is_one(monkeypatch: pytest.MonkeyPatch, gpus: int, found: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device(AUTO).type == found
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(("name", "gpus"), [("cuda", 0), ("cuda:2", 2), ("meta", 2)])
def test_a_device_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(LeanKVError, match=f"--device {name}: this machine has {gpus} CUDA GPUs; --device cpu"):
        pick_device(name)


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(LeanKVError, match="--device takes cpu, cuda or cuda:N, not 'gpu'"):
        pick_device("gpu")
