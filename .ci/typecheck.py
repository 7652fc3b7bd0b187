"""mypy over every package by its import name: ``kernels/`` is imported as ``leankv_kernels``, which mypy cannot be told
on its command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from mypy import build, main, modulefinder

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "kernels": "leankv_kernels",
    "patches": "leankv_patches",
    "leankv_sglang": "leankv_sglang",
    "bench": "bench",
}


def sources() -> Iterator[modulefinder.BuildSource]:
    """Every module with its import name; a stub stands for its module."""
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py*")):
            if path.suffix in (".py", ".pyi"):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                name = ".".join((package, *(part for part in parts if part != "__init__")))
                yield modulefinder.BuildSource(str(path), name)


def run() -> int:
    """The exit code."""
    # From a cache mypy forgets that a module given by path and name belongs to its package.
    _, options = main.process_options(["--no-incremental", "--config-file", str(ROOT / "pyproject.toml"), "-c", ""])
    found = list(sources())
    try:
        errors = build.build(found, options).errors
    except build.CompileError as error:
        errors = error.messages
    print("\n".join(errors) or f"mypy: no issues found in {len(found)} source files")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(run())
