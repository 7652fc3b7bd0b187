"""What a GPU machine installs is what the pinned sglang was released with, wherever we say it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from leankv_patches import SGLANG_VERSION

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CUDA = [Requirement(line) for line in PROJECT["optional-dependencies"]["cuda"]]
CPU = [Requirement(line) for line in PROJECT["optional-dependencies"]["cpu"]]
UNDECLARED = {"dill"}
"""What sglang imports and does not ask for."""
SGLANGS = {canonicalize_name(one.name): one for one in map(Requirement, requires("sglang") or []) if not one.marker}


def locked(before: str = "# Never") -> dict[str, Requirement]:
    """Packages of the lock, as far as a line that has ``before``."""
    text = (ROOT / "requirements-cpu.lock").read_text().split(before)[0]
    ones = [Requirement(line) for line in text.splitlines() if "==" in line]
    return {canonicalize_name(one.name): one for one in ones}


def test_the_extra_pins_the_release_of_sglang() -> None:
    assert str(next(one for one in CUDA if one.name == "sglang").specifier) == f"=={SGLANG_VERSION}"


@pytest.mark.parametrize("ours", [*CUDA, *CPU], ids=str)
def test_the_extras_pin_what_sglang_pins(ours: Requirement) -> None:
    if ours.name not in {"sglang", *UNDECLARED}:
        theirs = SGLANGS[canonicalize_name(ours.name)]
        assert (ours.specifier, ours.extras) == (theirs.specifier, theirs.extras)


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_the_extras_resolve(extra: str) -> None:
    """Without what is installed here."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", *wanted]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=600, check=False)
    if "Failed to establish a new connection" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr


def test_everything_locked_is_in_the_extra_or_comes_with_it() -> None:
    """So that a wheel and the lock give the same server; sglang is installed without what it asks for."""
    lock = locked("# Tests, lint").items()
    left = {name for name, one in lock if one.marker is None or one.marker.evaluate()} - {"sglang"}
    wanted = [*map(Requirement, PROJECT["dependencies"]), *CPU]
    seen: set[str] = set()
    while wanted:
        one = wanted.pop()
        name = canonicalize_name(one.name)
        if name in left - seen and (one.marker is None or one.marker.evaluate({"extra": ""})):
            seen.add(name)
            wanted += map(Requirement, requires(name) or [])
    assert left == seen


def test_the_compiled_packages_are_pinned() -> None:
    pinned = {canonicalize_name(one.name) for one in CUDA if str(one.specifier).startswith("==")}
    assert {"sglang", "torch", "sglang-kernel", "flashinfer-python", "transformers"} <= pinned


def test_ours_goes_with_the_core_dependencies() -> None:
    core = {one.name: one.specifier for one in map(Requirement, PROJECT["dependencies"])}
    for one in CUDA:
        for pin in one.specifier:
            assert core.get(one.name, one.specifier).contains(pin.version)


def test_the_container_has_the_cuda_release_of_our_compiler() -> None:
    """The kernels are compiled by the same release of nvcc beforehand and, for other shapes, in the container."""
    base = re.search(r"^FROM nvidia/cuda:(\d+\.\d+)", (ROOT / "Dockerfile.cuda").read_text(), re.MULTILINE)
    nvcc = re.search(r"^nvidia-cuda-nvcc==(\d+\.\d+)", (ROOT / "kernels/cuda/nvcc.lock").read_text(), re.MULTILINE)
    assert base
    assert nvcc
    assert base[1] == nvcc[1]


def test_the_lock_follows_sglang_but_for_torch() -> None:
    versions = {name: next(iter(one.specifier)).version for name, one in locked().items()}
    ours = [name for name, pin in SGLANGS.items() if name in versions and not pin.specifier.contains(versions[name])]
    assert ours == ["torch"]
    assert {"openai-harmony", "llguidance", "outlines"} <= versions.keys()
