"""Tasks from end to end on a tiny random model: items are built, answered, scored, kept, and found again."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.quality import harness
from bench.quality.answers import Item
from bench.quality.harness import Bench, Limits
from bench.quality.items import ItemStore
from bench.quality.systems import system, systems
from bench.quality.tasks import TASKS, babilong, gsm8k, humaneval, needle, ruler, task
from leankv_sglang.models import ensure_model
from leankv_sglang.offline.packed import PackedModel
from tests.tiny_models import tiny_packed

WORDS = {"noun": "fox wolf lake hill tree road", "adjective": "red grey old calm wide late", "verb": "run go see"}
LIMITS = Limits(items=2, windows=2, length=640, lengths=(700,), max_new=6, batch=4)
KEYS = {"system", "profile", "task", "ratio", "kl", "ppl_rel", "top1", "score", "score_raw", "model", "n", "spread"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ensure_model(quiet=True))


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> PackedModel:
    return tiny_packed(len(tokenizer))


@pytest.fixture
def bench(model: PackedModel, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("LEANKV_DATA", str(_data(tmp_path / "data")))
    monkeypatch.setattr(harness, "CONTEXT", 640)
    problem = {
        "task_id": "T/0",
        "prompt": "def one() -> int:\n    ",
        "entry_point": "one",
        "test": "def check(f):\n    assert f() == 1\n",
    }
    monkeypatch.setattr(humaneval, "problems", lambda: [problem] * 2)
    text = " ".join(f"The {a} {b} stood by number {i} ." for i in range(60) for a in "abcde" for b in ("fox", "hill"))
    chosen = systems(["balanced", "all k4v2", "fp8_e4m3"])
    return Bench(model, tokenizer, chosen, ItemStore(tmp_path / "items"), 64, text, quiet=True)


def _data(folder: Path) -> Path:
    for name in ("ruler-words", "gsm8k", "mt-bench", "babilong", "wikitext-2"):
        (folder / name).mkdir(parents=True)
    for kind, words in WORDS.items():
        many = [f"{word}{i}" for i in range(3) for word in words.split()]
        (folder / "ruler-words" / f"{kind}list.txt").write_text("\n".join(many))
    (folder / "wikitext-2" / "wiki.test.raw").write_text("A line .\n" * 100)
    (folder / "gsm8k" / "test.jsonl").write_text('{"question": "1 and 1?", "answer": "so\\n#### 1,002"}\n' * 3)
    talk = json.dumps({"turns": ["Who are you? " * 60, "And why? " * 30]})
    (folder / "mt-bench" / "question.jsonl").write_text((talk + "\n") * 3)
    row = json.dumps({"input": "Mary went to the garden. " * 9, "question": "Where is Mary? ", "target": "garden"})
    for name in ("qa1_2k", "qa2_2k"):
        with gzip.open(folder / "babilong" / f"{name}.jsonl.gz", "wt") as out:
            out.write((row + "\n") * 20)
    return folder


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_complete_and_found_again(name: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = LIMITS if name != "babilong" else Limits(items=2, lengths=(2048,), max_new=6)
    rows = task(name).run(bench, limits, 0)
    whole = [row for row in rows if row["task"] == name]
    assert [row["system"] for row in whole] == ["raw", "balanced", "all k4v2", "fp8_e4m3"]
    assert all(set(row) >= KEYS for row in rows)
    assert whole[0]["ratio"] == 1
    assert 1 < whole[1]["ratio"] < whole[2]["ratio"]
    if name in ("text", "chat", "code"):
        assert whole[0]["kl"] == 0
        assert 0 < whole[1]["kl"] < whole[2]["kl"]
        assert whole[2]["top1"] < 1
    else:
        assert {row["score_raw"] for row in whole} == {whole[0]["score"]}
        assert whole[0]["same_answers"] == 1
    # Everything is on disk: neither this bench nor another one of the same folder computes it again.
    monkeypatch.setattr(PackedModel, "extend", _refuse)
    again = Bench(
        bench.model, bench.tokenizer, bench.systems, ItemStore(bench.store.folder), 64, bench.text, quiet=True
    )
    assert task(name).run(again, limits, 0) == rows


def test_drawn_answers_are_scored_each(bench: Bench) -> None:
    rows = task("humaneval").run(bench, replace(LIMITS, samples=3), 0)
    assert [(row["n"], row["items"]) for row in rows] == [(6, 2)] * 4
    assert all(row["won"] - row["lost"] == round(6 * (row["score"] - row["score_raw"])) for row in rows)


def _refuse(*args: Any) -> None:
    raise AssertionError("computed again")


def test_what_matters_is_part_of_the_key(bench: Bench) -> None:
    base = bench.key(bench.systems[0], "x")
    assert bench.key(bench.systems[1], "x") != base
    assert bench.key(system("balanced", near_pages=2), "x") != base
    assert bench.key(bench.systems[0], "y") != base
    assert bench.key(None, "x") != base
    bench.page_size = 128
    assert bench.key(bench.systems[0], "x") != base
    # The default form by another name is the same system.
    assert system("balanced").digest == system("k8v4,k4v2, a_h 1").digest


def test_text_scores_what_lies_behind_the_skip(bench: Bench) -> None:
    rows = task("text").run(bench, LIMITS, 0)
    # Windows of 640 begin to score at half of them, and the last token has no target.
    assert rows[1]["n"] == 2 * (640 - 320 - 1)
    assert rows[1]["spread_blocks"] > 0
    assert sum(rows[1]["kl_windows"]) / 2 == pytest.approx(rows[1]["kl"])
    # Less than the tail's 512 tokens are scored of such a window.
    assert rows[1]["kl_tail"] == pytest.approx(rows[1]["kl"])


def _items(module: Any, bench: Bench, length: int, monkeypatch: pytest.MonkeyPatch) -> list[Item]:
    """What a task would ask of a context of this length."""
    monkeypatch.setattr(module, "run_answers", lambda bench, name, items, *_: items)
    items: list[Item] = module.run(bench, replace(LIMITS, items=None, lengths=(length,)), 0)
    return items


def test_needles_lie_at_their_depths(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for depth, item in zip(needle.DEPTHS, _items(needle, bench, 1000, monkeypatch), strict=False):
        assert len(item.context) == 1000 - needle.RESERVE
        text = bench.tokenizer.decode(item.context)
        first, second = (text.index(ask.truth) / len(text) for ask in item.asks)
        assert abs(first - depth) < 0.15
        assert abs(abs(first - second) - 0.45) < 0.2
        # Every needle begins behind a sentence's end.
        assert all(re.search(r"[.\n] ?$", text[: m.start()]) for m in re.finditer(r" The pass key of", text))
        seen.append(first)
    assert seen == sorted(seen)


def test_ruler_hides_what_it_asks_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    item = _items(ruler, bench, 1400, monkeypatch)[0]
    text = bench.tokenizer.decode(item.context)
    assert [ask.kind for ask in item.asks] == ["key", "key", "values", "chain"]
    assert item.asks[0].truth != item.asks[1].truth
    for ask in item.asks:
        assert all(wanted in text for wanted in ask.truth)
    values, chain = item.asks[2], item.asks[3]
    assert len(values.truth) == ruler.VALUES
    places = [text.index(f"VAR {name} =") for name in chain.truth]
    assert places == sorted(places)
    assert ruler.score(values, " ".join(values.truth[:1])) == 1 / ruler.VALUES


def test_scores() -> None:
    def ask(truth: Any) -> Any:
        return needle.Ask([], 1, truth)

    assert needle.score(ask("12345"), " 12345. Remember 777") == 1
    assert needle.score(ask("12345"), " 123456") == 0
    assert gsm8k.score(ask("1,002"), "first 5, then $1002.00.") == 1
    assert gsm8k.score(ask("1,002"), "no number") == 0
    assert babilong.score(ask("garden"), "Mary is in the garden.\nOr the office.") == 1
    assert babilong.score(ask("garden"), "garden or office") == 0


def test_programs_are_put_together_and_run() -> None:
    problem = {
        "prompt": "import math\n\ndef half(x):\n    return x / 2\n\ndef area(r):\n    '''Half a disc.'''\n",
        "entry_point": "area",
        "test": "def check(f):\n    assert abs(f(2) - 6.283) < 0.01\n",
    }
    body = "    return half(math.pi * r * r)\n"
    for answer in (
        f"Sure:\n```python\ndef area(r):\n{body}```\nDone.",
        f"```\ndef area(r):\n{body}",
        f"def area(r):\n{body}",
        body,
    ):
        assert humaneval.passes(humaneval.program_of(problem, answer))
    assert not humaneval.passes(humaneval.program_of(problem, "    return 1\n"))
    assert not humaneval.passes("while True: pass", seconds=1)
    assert not humaneval.passes("raise SystemExit(0)")
    assert humaneval.passes("if __name__ == '__main__':\n    raise SystemExit(1)")
    assert not humaneval.passes("x = bytearray(4 << 30)")
