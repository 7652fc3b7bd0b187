"""Files that are no profiles at all: no text, no JSON, no files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.compression.test_profile import check_refused

DEEP = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize("text", ["", "alpha: 1", "[1, 2", "\x00", DEEP, DEEP[:200_000], "9" * 5000])
def test_what_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    check_refused(str(path), "is not JSON")


@pytest.mark.parametrize("text", ["[]", "1", "null", '"leankv_profile"', "{}"])
def test_json_that_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    check_refused(str(path), "is not a LeanKV profile of version 2")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.json"
    path.write_bytes(b"\xff\xfe\x00{")
    check_refused(str(path), "is not JSON")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    check_refused(str(tmp_path / "absent.json"), "cannot be read (No such file or directory)")
    check_refused(str(tmp_path), "cannot be read (Is a directory)")
    os.mkfifo(tmp_path / "pipe")
    check_refused(str(tmp_path / "pipe"), "cannot be read (it is no regular file)")
