"""Starting: refusals are one sentence, and stock SGLang works from the same environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bench.common.server import serve
from leankv_kernels import TIERS


def _launch(*flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "leankv_sglang.launch_server", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **env})


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--leankv-tiers", "k2v2"), f"--leankv-tiers takes {', '.join(TIERS)}, not 'k2v2'."),
        (("--page-size", "1"), "LeanKV cannot start: --page-size must be 64, 128 or 256."),
        (("--leankv-profile", "nowhere.json"), "--leankv-profile nowhere.json: cannot be read"),
    ],
)
def test_refusals_are_one_sentence(flags: tuple[str, ...], sentence: str) -> None:
    result = _launch(*flags)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr + result.stdout


def test_a_seam_that_did_not_take_stops_the_start() -> None:
    """SGLang skips our plugin without a word; the launcher must not serve uncompressed."""
    result = _launch(SGLANG_PLUGINS="something_else")
    assert result.returncode == 2
    assert "LeanKV does not reach into this sglang as it must" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_groups_our_flags() -> None:
    text = _launch("--help").stdout
    group = text[text.index("LeanKV:") :]
    assert "--leankv-tiers" in group
    assert "--max-total-tokens" in text


def test_plain_sglang_serves_from_the_same_environment() -> None:
    with serve("--max-total-tokens", "4096", stock=True) as server:
        assert "Paris" in server.generate("The capital of France is", 8).text
        assert "leankv" not in server.info()
