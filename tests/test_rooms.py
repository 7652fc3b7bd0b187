"""Directions of imports (``tool.importlinter`` in pyproject.toml) hold, and files stay small."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 300
SOURCES = {".py", ".pyi", ".cpp", ".cu", ".cuh", ".h", ".inl"}


def test_rooms_import_only_from_rooms_below() -> None:
    # In a process of its own: it switches off loggers that other tests listen to.
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_has_more_than_one_job() -> None:
    """As far as its length tells; what is generated says so in its first line."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    paths = [ROOT / name for name in listed if Path(name).suffix in SOURCES]
    lines = {path: path.read_text().splitlines() for path in paths if path.exists()}
    long = {str(path): len(text) for path, text in lines.items() if len(text) > LONGEST}
    assert [path for path in long if "generated" not in lines[Path(path)][0].lower()] == []


def test_links_of_the_documents_lead_somewhere() -> None:
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    broken = []
    for name in listed.split():
        if name.startswith("tests/"):
            continue
        text = (ROOT / name).read_text()
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            file = (ROOT / name).parent / path if path else ROOT / name
            if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
                broken.append(f"{name}: {target}")
    assert broken == []


def anchors(text: str) -> set[str]:
    """What headings of a document are linked by."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_read_in_a_minute() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
