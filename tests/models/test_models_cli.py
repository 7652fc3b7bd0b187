"""`python -m leankv_sglang.models`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leankv_sglang.models import DEFAULT_MODEL
from leankv_sglang.models import __main__ as cli


def test_listing_of_an_empty_cache(cache_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "DOWNLOAD", "LICENCE", "FETCHED", "PATH", "NOTE"]
    assert [line.split()[0] for line in lines[1:]] == [
        "SmolLM2-135M-Instruct",
        "Qwen2.5-Coder-0.5B-Instruct",
        "Qwen2.5-Coder-1.5B-Instruct",
    ]
    assert lines[1].split()[1:] == ["93", "MB", "Apache-2.0", "no", "-", "default"]
    assert lines[2].endswith("never fetched by default")
    starts = {line.index("Apache-2.0") for line in lines[1:]}
    assert starts == {lines[0].index("LICENCE")}
    assert not cache_home.exists()


def test_listing_shows_what_is_fetched(
    cache_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "is_fetched", lambda name: name == DEFAULT_MODEL)
    cli.main(["list"])
    line = capsys.readouterr().out.splitlines()[1]
    assert "  yes  " in line
    assert str(cache_home / "models" / DEFAULT_MODEL) in line
    cli.main(["path"])
    assert capsys.readouterr().out == f"{cache_home / 'models' / DEFAULT_MODEL}\n"


def test_convert_prints_the_folder(
    cache_home: Path, make_gguf: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    gguf, _ = make_gguf(tokenizer=True)
    assert cli.main(["convert", str(gguf), "--out", str(tmp_path / "out")]) == 0
    streams = capsys.readouterr()
    assert streams.out == f"{tmp_path / 'out'}\n"
    assert streams.err.startswith("leankv: converting tiny.gguf")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch", "nonsense"], "no model called 'nonsense'"),
        (["path", DEFAULT_MODEL], "is not fetched"),
        (["convert", "absent.gguf"], "No such file"),
        (["convert", ""], "The path of a file or folder is empty"),
        (["convert", "/"], "Is a directory"),
        (["convert", "/dev/zero"], "no regular file"),
        (["convert", "~nobody-of-this-name/x.gguf"], "cannot be found"),
        (["fetch", ""], "no model called ''"),
        (["path", ""], "no model called ''"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "leankv_sglang.models", *arguments],
        env={**os.environ, "LEANKV_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
