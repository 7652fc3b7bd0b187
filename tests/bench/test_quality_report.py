"""Rows of others are merged by their keys, tables leave out what nobody measured, plots are drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.common.data import wikitext
from bench.quality import cli
from bench.quality.items import ItemStore
from bench.quality.plot import frontier, plot
from bench.quality.report import family, print_rows, read_rows, same_windows
from bench.quality.systems import FORMS, system, systems
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.shape import CacheShape

OURS = {"kind": "leankv", "system": "small", "task": "text", "ratio": 3.8, "kl": 0.01, "kl_tail": 0.02, "model": "M"}
SCORED = {"kind": "leankv", "system": "small", "task": "needle", "ratio": 3.8, "score": 0.5, "score_raw": 0.75}
RIVAL = {"system": "int4", "task": "text", "ratio": 3.5, "kl_tail": 0.3, "model": "M"}


def test_rival_rows_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "a.json", tmp_path / "b.jsonl"
    one.write_text(json.dumps([RIVAL]))
    two.write_text(json.dumps({**RIVAL, "system": "int8", "kind": "rival"}) + "\n")
    rows = read_rows([str(one), str(two)])
    assert [(row["system"], row["kind"]) for row in rows] == [("int4", "int4"), ("int8", "rival")]
    assert all(row["kl"] is None for row in rows)
    print_rows([OURS, SCORED, *rows])
    out = capsys.readouterr().out
    assert "M: text" in out
    assert out.index("int4") < out.index("small")
    assert "score_raw" not in out[: out.index("needle")]
    for ending in ("png", "svg"):
        plot([OURS, SCORED, *rows], str(tmp_path / f"p.{ending}"))
        assert (tmp_path / f"p.{ending}").stat().st_size > 1000


def test_rivals_are_coloured_by_family() -> None:
    named = {("transformers", "hqq 4, axis 1"): "hqq", ("transformers", "quanto 2"): "quanto"}
    named |= {("kvpress", "KVzip 25%"): "kvpress", ("kvpress", "KVzip 25% + quanto 4"): "kvpress + int4"}
    named |= {("llama.cpp", "q8_0/q4_0"): "llama.cpp", ("int4", ""): "int4"}
    for (name, profile), expected in named.items():
        assert family({"system": name, "profile": profile}) == expected


def test_rows_tell_whether_their_windows_are_ours(capsys: pytest.CaptureFixture[str]) -> None:
    ours = {**OURS, "windows": ["a", "b", "c"]}
    others = [{**RIVAL, "kind": "r", "windows": cut} for cut in (["a", "b", "c"], ["a", "b"], ["x"], None)]
    assert [same_windows(row, [*others, ours]) for row in others] == ["yes", "2 of 3", "0 of 3", None]
    assert same_windows(others[0], others) is None
    print_rows([ours, *others])
    assert "same windows" in capsys.readouterr().out


def test_a_point_is_on_the_frontier_unless_another_beats_it() -> None:
    assert frontier([(1, 0.1), (2, 0.2), (2, 0.3), (3, 0.2), (4, 0.9), (1.5, 0.15)]) == [4, 3, 5, 0]
    assert frontier([]) == []


@pytest.mark.parametrize("metric", ["kl_tail", "ppl_rel_tail"])
def test_the_plot_shows_what_would_have_been_freed(tmp_path: Path, metric: str) -> None:
    losses = {"kl_tail": 0.3, "ppl_rel_tail": -0.01}
    masked = {**RIVAL, **losses, "kind": "kvpress", "profile": "KVzip", "ratio": 1.0, "ratio_if_freed": 4.0}
    failed = {**RIVAL, "kind": "kvpress", "ratio": None, "kl_tail": None}
    file = tmp_path / "p.svg"
    plot([{**OURS, **losses}, masked, failed], str(file), metric)
    text = file.read_text()
    assert "<!-- kvpress, had it freed what it masks -->" in text
    assert text.count("<!-- KVzip -->") == 2  # the point that is, and the one that would be


def test_a_row_that_cannot_be_placed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('[{"system": "x"}]')
    with pytest.raises(ValueError, match=r"a\.json lacks task, ratio"):
        read_rows([str(file)])


def test_the_command_merges_without_running_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "a.json", tmp_path / "o.json"
    file.write_text(json.dumps([RIVAL]))
    monkeypatch.setattr("sys.argv", ["x", "--tasks", "none", "--rival-json", str(file), "--json", str(out)])
    cli.main()
    assert json.loads(out.read_text())[0]["kl_tail"] == 0.3
    assert "int4" in capsys.readouterr().out


def test_systems_by_name(tmp_path: Path) -> None:
    assert [one.name for one in systems(["raw", "forms", "small", "small"])] == [*FORMS, "small"]
    assert system("near-lossless").thresholds(2, 3)[:, 0].tolist() == [[-1.0] * 3] * 2
    assert system("small", near_pages=3).config.near_pages == 3
    with pytest.raises(LeanKVError, match="not 'tiny'"):
        system("tiny")
    profile = {
        "leankv_profile": 2,
        "page_size": 128,
        "model": {"num_layers": 1, "num_kv_heads": 2, "head_dim": 64},
        **{"tiers": "k8v4,k4v2", "rotation": "hadamard", "significance": "attention", "window": 1},
        "points": {"balanced": {"alpha_high": [[1.0, 2.0]], "alpha_low": 0.1}},
    }
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(profile))
    mine = system(str(file), CacheShape(1, 2, 64))
    assert mine.profile == "mine balanced"
    assert mine.thresholds(1, 2)[:, 0].tolist() == [[1.0, 2.0]]
    file.write_text(json.dumps({**profile, "calibration": "other"}))
    assert system(str(file)).digest == mine.digest
    file.write_text(json.dumps({**profile, "points": {"balanced": {"alpha_high": 1.0, "alpha_low": 0.2}}}))
    assert system(str(file)).digest != mine.digest
    with pytest.raises(LeanKVError, match="was made for a model of"):
        system(str(file), CacheShape(3, 2, 64))


def test_calibration_never_sees_what_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wikitext-2").mkdir()
    whole = "".join(f"line {i} <unk> .\n" for i in range(101))
    (tmp_path / "wikitext-2" / "wiki.test.raw").write_text(whole)
    monkeypatch.setenv("LEANKV_DATA", str(tmp_path))
    first, second = wikitext("calibration"), wikitext("heldout")
    assert first + second == wikitext() == whole.replace("<unk>", "the")
    assert len(second) - len(first) in (0, 1)
    with pytest.raises(ValueError, match="not 'train'"):
        wikitext("train")


def test_items_survive_a_run_that_was_killed(tmp_path: Path) -> None:
    store = ItemStore(tmp_path)
    store.put("t", {"a": 1}, {"v": 1})
    with open(tmp_path / "t.jsonl", "a") as out:
        out.write('{"hash": "half')
    after = ItemStore(tmp_path)
    assert after.get("t", {"a": 1}) == {"v": 1}
    assert after.get("t", {"a": 2}) is None
    after.put("t", {"a": 2}, {"v": 2})
    last = ItemStore(tmp_path)
    assert [last.get("t", {"a": i}) for i in (1, 2)] == [{"v": 1}, {"v": 2}]
