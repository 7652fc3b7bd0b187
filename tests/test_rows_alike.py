"""What a hit that equals a miss stands on, on a CPU: a row of a matrix product has the same bits in any company."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from leankv_sglang.environment import ROW_STABLE_ISA, WITHOUT_BF16, keep_rows_alike

SETTINGS = ("ONEDNN_MAX_CPU_ISA", "MKL_CBWR")
PRODUCTS = """
import torch
from leankv_sglang.environment import keep_rows_alike
keep_rows_alike()
torch.manual_seed(0)
for outputs, inputs in ((576, 576), (192, 576), (576, 1536), (3072, 576), (4096, 576)):
    weight = (torch.randn(outputs, inputs) * 0.05).bfloat16()
    x = torch.randn(1024, inputs).bfloat16()
    whole = torch.nn.functional.linear(x, weight)
    for first, count in ((0, 2), (0, 3), (5, 17), (0, 31), (7, 64), (100, 300), (0, 877)):
        rows = slice(first, first + count)
        assert torch.equal(torch.nn.functional.linear(x[rows], weight), whole[rows]), (outputs, inputs, count)
"""


def test_rows_do_not_depend_on_how_many_there_are() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", PRODUCTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("has_bf16", "instructions"), [(True, ROW_STABLE_ISA), (False, WITHOUT_BF16)])
def test_libraries_are_asked_for_what_keeps_rows_alike(
    has_bf16: bool, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has_bf16)
    for name in SETTINGS:
        # So that what is set below is taken back.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    keep_rows_alike()
    assert [os.environ[name] for name in SETTINGS] == [instructions, "AUTO,STRICT"]


def test_what_the_user_said_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.setenv(name, "DEFAULT")
    keep_rows_alike()
    assert [os.environ[name] for name in SETTINGS] == ["DEFAULT", "DEFAULT"]
