"""What ends a start is said in one sentence, wherever it happened."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from leankv_sglang.errors import LeanKVError
from leankv_sglang.plugin import faults
from tests.sentences import is_one_sentence


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a start; SIGQUIT is heard as a launcher does."""
    monkeypatch.setenv(faults.REPORT_ENV, "")
    monkeypatch.setattr(faults, "_PATIENCE", 0.0)
    monkeypatch.setattr(faults.tempfile, "tempdir", str(tmp_path))
    before = signal.signal(signal.SIGQUIT, faults.on_child_failure)
    yield faults.begin_report()
    signal.signal(signal.SIGQUIT, before)


def test_what_a_process_reports_is_what_the_launcher_says(path: Path) -> None:
    with pytest.raises(faults.ChildFailed) as caught:
        faults.report(ValueError("two\nlines"))
    error = faults.start_error(caught.value, path)
    assert str(error).startswith("LeanKV cannot start: SGLang says ValueError: two lines (the traceback is in ")
    assert is_one_sentence(str(error))
    faults.end_report(path)
    assert "ValueError: two\nlines" in path.read_text()


def test_a_process_waits_for_its_end_and_says_no_more(path: Path) -> None:
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    with pytest.raises(SystemExit):
        faults.report(LeanKVError("Do this."))
    assert str(faults.start_error(faults.ChildFailed(), path)).startswith("Do this (the traceback is in ")


def test_without_a_launcher_exceptions_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.REPORT_ENV, raising=False)
    faults.report(ValueError("a"))


def test_the_launchers_own_errors(path: Path) -> None:
    ours = LeanKVError("Do that.")
    assert faults.start_error(ours, path) is ours
    assert is_one_sentence(str(faults.start_error(faults.ChildFailed(), path)))
    faults.end_report(path)
    assert not path.exists()
    path.touch()
    died = RuntimeError("Rank 0 scheduler died during initialization (exit code: -9). If exit code is -9, run dmesg.")
    said = str(faults.start_error(died, path))
    assert "exit code: -9" in said
    assert "lack of memory" in said
    assert is_one_sentence(said)
    assert os.environ[faults.REPORT_ENV].startswith(f"{os.getpid()}:")
