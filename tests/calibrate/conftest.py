"""Calibrations that take seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from torch import Tensor

from leankv_sglang.calibrate import __main__ as command
from leankv_sglang.calibrate import search
from leankv_sglang.calibrate import windows as windows_module

SMALL = ("--windows", "1", "--measured", "1", "--page-size", "64")
TOKENS, STEPS = 640, 5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A place for what is kept, which these tests share as runs of one user do, and shorter texts, windows
    and searches.
    """
    folder, windows = tmp_path_factory.mktemp("home"), windows_module.calibration_windows

    def shorter(tokenizer: Any, texts: list[str], count: int, length: int, seed: int = 0) -> list[Tensor]:
        return windows(tokenizer, [text[:50_000] for text in texts], count, min(length, TOKENS), seed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "home", lambda: folder)
        patch.setattr(windows_module, "calibration_windows", shorter)
        patch.setattr(search, "STEPS", STEPS)
        yield
