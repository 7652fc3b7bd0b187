"""What happens before sglang looks at anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from leankv_sglang.environment import unshadow_kernels

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("entry", ["", str(ROOT)])
def test_the_checkout_does_not_shadow_other_packages(monkeypatch: pytest.MonkeyPatch, entry: str) -> None:
    """Hugging Face has a package called kernels, and so has this repository a folder."""
    monkeypatch.chdir(ROOT)
    others = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    monkeypatch.setattr(sys, "path", [entry, *others])
    unshadow_kernels()
    assert sys.path == [*others, entry]
