"""Starting: refusals are one sentence, and stock SGLang works from the same environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from leankv_kernels import TIERS
from tests.e2e.forked import Zygote


def _launch(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leankv_sglang.launch_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--leankv-tiers", "k2v2"), f"--leankv-tiers takes {', '.join(TIERS)}, not 'k2v2'."),
        (("--leankv-profile", "nowhere.json"), "--leankv-profile nowhere.json: cannot be read"),
    ],
)
def test_refusals_are_one_sentence(flags: tuple[str, ...], sentence: str) -> None:
    result = _launch(*flags)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_refusals_with_sglang_at_hand_are_one_sentence(zygote: Zygote) -> None:
    code, printed = zygote.run(["--page-size", "1"], {})
    assert code == 2
    assert "LeanKV cannot start: --page-size must be 64, 128 or 256." in printed
    assert "Traceback" not in printed


def test_a_seam_that_did_not_take_stops_the_start(zygote: Zygote) -> None:
    """SGLang skips our plugin without a word; the launcher must not serve uncompressed."""
    code, printed = zygote.run([], {"SGLANG_PLUGINS": "something_else"})
    assert code == 2
    assert "LeanKV does not reach into this sglang as it must" in printed
    assert "Traceback" not in printed


def test_help_groups_our_flags(zygote: Zygote) -> None:
    _, text = zygote.run(["--help"], {})
    ours, theirs = text.split("\nSGLang:\n")
    assert "--leankv-tiers" in ours
    assert "--max-total-tokens" in theirs
    assert zygote.run(["--help", "leankv"], {})[1].strip() == ours.strip()


def test_plain_sglang_serves_from_the_same_environment(tiny: Path, zygote: Zygote) -> None:
    with zygote.serve("--model-path", str(tiny), "--max-total-tokens", "4096", stock=True) as server:
        assert len(server.generate(list(range(200)), 8).tokens) == 8
        assert "leankv" not in server.info()
