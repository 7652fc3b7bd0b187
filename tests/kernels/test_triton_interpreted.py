"""Runs the tests of the Triton backend in Triton's interpreter, where no GPU can run them.

In a process of its own, since Triton reads TRITON_INTERPRET when it is imported and other tests import it through
sglang; beside the folder's other tests, since it takes minutes and one core (conftest.py).
"""

from __future__ import annotations

import pytest
import torch

from tests.kernels.draws import INTERPRETED
from tests.kernels.interpreted import InterpretedRun


@pytest.mark.skipif(INTERPRETED, reason="is running them")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs them")
def test_the_triton_backend_in_the_interpreter(interpreted_run: InterpretedRun) -> None:
    code, output = interpreted_run.wait()
    assert code == 0, output[-8000:]
    skipped = [line for line in output.splitlines() if line.startswith("SKIPPED")]
    assert all(line.endswith(": needs a GPU") for line in skipped), skipped
