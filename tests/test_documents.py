"""Commands in the documents are there and take the flags that are named; Python in them finds what it imports."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVERS = {"leankv_sglang.launch_server", "sglang.launch_server"}
PASSING_ON = {"bench.stress"}
"""Commands that hand flags that they do not know to their server."""
ELSEWHERE = {"curl", "docker", "mooncake_master", "pip", "pre-commit"}
"""Programs that are not ours."""
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)) | set(
    re.findall(r"[\w-]+", re.search(r"^\.PHONY:(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1])  # type: ignore[index]
)


def blocks(kind: str) -> list[tuple[str, str]]:
    """Blocks of code of all documents, each with its document's name."""
    found = (
        (path, re.findall(rf"^```{kind}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)) for path in DOCUMENTS
    )
    return [(path.name, block) for path, texts in found for block in texts]


def commands() -> list[tuple[str, str]]:
    """Of blocks for a shell, a line each, and those that prose names in backticks."""
    lines = []
    for name, block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            lines.append((name, without_comment(line)))
    for path in DOCUMENTS:
        prose = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        lines += [(path.name, code) for code in re.findall(r"`((?:make|python -m|leankv-server) [^`]+)`", prose)]
    parts = {(name, part.strip()) for name, line in lines for part in line.split("&&")}
    return sorted((name, part) for name, part in parts if part)


def without_comment(line: str) -> str:
    """A line of a shell as far as its comment."""
    return re.sub(r"(^|\s+)#.*$", "", line)


@cache
def help_of(module: str) -> str:
    """What a command says of itself."""
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    return done.stdout


@cache
def server_flags() -> set[str]:
    """Of both."""
    return set(re.findall(r"--[\w-]+", help_of("leankv_sglang.launch_server")))


def problem(words: list[str]) -> str | None:
    """What is wrong with a command."""
    program, *rest = words
    if program == "make":
        return target_problem(rest)
    if program.endswith("python") and rest[:1] == ["-m"]:
        return module_problem(rest[1], rest[2:])
    if program == "leankv-server":
        return module_problem("leankv_sglang.launch_server", rest)
    if program in ELSEWHERE:
        return None
    return None if (ROOT / program).exists() else "there is no such program"


def target_problem(words: list[str]) -> str | None:
    """What is wrong with a call of make: its targets, and the flags in ARGS."""
    targets = [word for word in words if "=" not in word]
    if missing := [one for one in targets if one not in TARGETS]:
        return f"make has no {missing[0]}"
    arguments = shlex.split(next((word[5:] for word in words if word.startswith("ARGS=")), ""))
    name = targets[0] if targets else "setup"
    if name in ("test", "test-fast", "sanitize", "fuzz-cuda"):
        return None
    if arguments and name == "serve":
        return module_problem("leankv_sglang.launch_server", arguments)
    if arguments and name == "bench-rivals":
        return None  # in an environment of its own
    return module_problem("bench." + name.removeprefix("bench-").replace("-", "_"), arguments) if arguments else None


def module_problem(module: str, arguments: list[str]) -> str | None:
    """What is wrong with ``python -m module arguments``."""
    if module in ("pytest", "pip", "sglang_router.launch_router"):
        return None
    if find_spec(module) is None:
        return f"there is no module {module}"
    flags = [word.split("=")[0] for word in arguments if word.startswith("--")]
    known = set(re.findall(r"--[\w-]+", help_of(module))) if flags and module not in SERVERS else set()
    if module in SERVERS | PASSING_ON:
        known |= server_flags()
    return next((f"{module} does not take {flag}" for flag in flags if flag not in known and flag != "--help"), None)


@pytest.mark.slow
def test_commands_of_the_documents_are_there() -> None:
    wrong = []
    for name, line in commands():
        words = shlex.split(line.replace("...", ""))
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words and (why := problem(words)):
            wrong.append(f"{name}: `{line}`: {why}")
    assert wrong == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("make nothing", "make has no nothing"),
        ('make bench-stress ARGS="--nowhere 1"', "bench.stress does not take --nowhere"),
        ("python -m bench.nothing", "there is no module bench.nothing"),
        ("nothing --at-all", "there is no such program"),
        ("make bench-stress", None),
    ],
)
def test_what_is_wrong_is_seen(line: str, why: str | None) -> None:
    assert problem(shlex.split(line)) == why


def python_sources() -> list[tuple[str, str]]:
    """Of blocks, and of the examples."""
    files = [(path.name, path.read_text()) for path in sorted((ROOT / "examples").glob("*.py"))]
    return [*blocks("python"), *files]


@pytest.mark.parametrize(("name", "source"), python_sources(), ids=[name for name, _ in python_sources()])
def test_python_of_the_documents_finds_what_it_imports(name: str, source: str) -> None:
    for node in ast.walk(ast.parse(source, name)):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert all(hasattr(import_module(node.module), one.name) for one in node.names)
        elif isinstance(node, ast.Import):
            assert all(find_spec(one.name.split(".")[0]) for one in node.names)
