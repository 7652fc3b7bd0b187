"""Directions of imports (``tool.importlinter`` in pyproject.toml) hold, and files stay small."""

from __future__ import annotations

import subprocess
from pathlib import Path

from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 300
SOURCES = {".py", ".pyi", ".cpp", ".cu", ".cuh", ".h", ".inl"}


def test_rooms_import_only_from_rooms_below() -> None:
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_no_file_has_more_than_one_job() -> None:
    """As far as its length tells; what is generated says so in its first line."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    paths = [ROOT / name for name in listed if Path(name).suffix in SOURCES]
    lines = {path: path.read_text().splitlines() for path in paths if path.exists()}
    long = {str(path): len(text) for path, text in lines.items() if len(text) > LONGEST}
    assert [path for path in long if "generated" not in lines[Path(path)][0].lower()] == []
