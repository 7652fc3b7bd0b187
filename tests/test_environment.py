"""What happens before sglang looks at anything."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from leankv_sglang.environment import prepare_cpu, unshadow_kernels

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("entry", ["", str(ROOT)])
def test_the_checkout_does_not_shadow_other_packages(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    """Hugging Face has a package called kernels, and so has this repository a folder."""
    monkeypatch.chdir(ROOT)
    others = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    monkeypatch.setattr(sys, "path", [entry, *others])
    unshadow_kernels()
    assert sys.path == [*others, entry]


def test_a_crash_without_a_gpu_does_not_wait_for_its_dumps(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang sleeps for 65 seconds otherwise, and clients of the server hang."""
    dumps = ("SGLANG_CUDA_COREDUMP_BEFORE_CRASH", "SGLANG_PYSPY_DUMP_BEFORE_CRASH")
    for name in dumps:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    prepare_cpu()
    assert [os.environ[name] for name in dumps] == ["0", "0"]
    monkeypatch.setenv(dumps[0], "1")
    prepare_cpu()
    assert os.environ[dumps[0]] == "1"
