"""What the C library has free goes back to the system."""

from __future__ import annotations

import platform

import psutil
import pytest
import torch

from leankv_sglang.kvcache import heap


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_free_memory_goes_back_once_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    held = heap.Heap()
    blocks = [torch.ones(1 << 14) for _ in range(2048)]  # 64 KiB each, which the C library keeps in its heap
    kept = blocks[::64]
    blocks.clear()
    before = psutil.Process().memory_info().rss
    held.trim_if_due()
    assert held.trims == 0, "not due yet"
    monkeypatch.setattr(held, "_due", 0.0)
    held.trim_if_due()
    assert held.trims == 1
    assert psutil.Process().memory_info().rss < before - (64 << 20)
    assert all(bool((block == 1).all()) for block in kept)
    held.trim_if_due()
    assert held.trims == 1, "the next one is due later"
