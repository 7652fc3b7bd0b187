"""bench.heads: what it asks for, what it makes of the answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import heads
from bench.common.plot import heatmaps
from bench.serving.__main__ import PRUNED_PROFILE


def test_the_table_says_how_far_apart_heads_are() -> None:
    reading = heads.Reading([[10.0, 50.0], [60.0, 80.0]], 1000, 0.1, 5.0, {"high": 0.2, "low": 0.8})
    row = heads.summary("p", reading, 256)
    assert (row["min"], row["median"], row["max"], row["mean"], row["16 bits"]) == (10, 55, 80, 50, 256)
    assert row["below half of the mean"] == 0.25
    assert (row["high"], row["low"]) == (0.2, 0.8)


def test_heads_at_either_end_are_named() -> None:
    sizes = [[float(10 * layer + head) for head in (1, 2)] for layer in range(1, 4)]
    reading = heads.Reading(sizes, 1000, 0.1, 5.0, {})
    rows = heads.ends(reading, 256, 2)
    assert [(row["layer"], row["KV head"], row["bytes per token"]) for row in rows] == [
        (0, 0, 11),
        (0, 1, 12),
        (2, 0, 31),
        (2, 1, 32),
    ]
    assert (rows[0]["rank"], rows[-1]["rank"]) == ("1 of 6", "6 of 6")
    assert len(heads.ends(reading, 256, 4)) == 6
    pruned = heads.ends(heads.Reading([[0.0, 0.0]], 1000, 0.0, 5.0, {}), 256)
    assert [row["bytes per token"] for row in pruned] == [0, 0]


def test_the_map_has_a_panel_a_profile(tmp_path: Path) -> None:
    file = tmp_path / "map.svg"
    tables = {"one": [[1.0, 2.0]] * 3, "two": [[0.0, 4.0]] * 3}
    heatmaps(tables, str(file), x_text="KV head", y_text="layer", value_text="bytes", title="T")
    assert file.read_text().count("<image") == 3  # two panels and the colour bar


def test_profiles_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "shipped_profile", lambda model: Path("p.json"))
    assert list(heads.profiles([], [], "m")) == ["near-lossless", "balanced", "small"]
    assert heads.profiles([], ["--leankv-alpha-low", "0.5"], "m") == {heads.FLAGS: ()}
    assert heads.profiles(["mine.json:small"], [], "m") == {"mine.json:small": ("--leankv-profile", "mine.json:small")}
    monkeypatch.setattr(heads, "shipped_profile", lambda model: None)
    assert heads.profiles([], [], "m") == {"pruned": ("--leankv-profile", PRUNED_PROFILE)}
    assert "pruned" in json.loads(Path(PRUNED_PROFILE).read_text())["points"]
