"""What happens before sglang looks at anything."""

from __future__ import annotations

import os
import subprocess
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


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc what its heap holds")
def test_shapes_of_products_that_do_not_come_again_are_forgotten() -> None:
    """Every length of a prompt is a shape, and oneDNN and torch keep what they made for each: 0.6 MiB."""
    env = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    held = subprocess.run(
        [sys.executable, "-c", SHAPES], cwd=ROOT, env=env, check=True, capture_output=True, text=True, timeout=120
    ).stdout.split()
    first, second = map(int, held)
    assert second - first < 40 << 20


SHAPES = """
import ctypes
from leankv_sglang.environment import prepare_cpu
prepare_cpu()
import torch

class Held(ctypes.Structure):
    _fields_ = [(f"f{i}", ctypes.c_size_t) for i in range(10)]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Held
weight = torch.zeros(576, 576, dtype=torch.bfloat16)
for rows in range(1, 601):
    torch.nn.functional.linear(torch.zeros(rows, 576, dtype=torch.bfloat16), weight)
    if rows % 300 == 0:
        print(libc.mallinfo2().f7)
"""
