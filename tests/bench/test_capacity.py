"""The capacity bench at its smallest: every form fills a pool, and the table says what was held."""

from __future__ import annotations

import pytest

from bench.capacity.__main__ import FORMS, cost_rows, held_rows
from leankv_sglang.config import CONFIG_ENV
from leankv_sglang.models.shape import ModelShape


@pytest.fixture(autouse=True)
def _config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, "")  # put back what a world leaves there


def test_every_form_holds_more_than_sixteen_bits() -> None:
    rows = held_rows(ModelShape(2, 4, 2, 64), "tiny", 24 << 20, list(FORMS))
    assert [row["system"] for row in rows] == list(FORMS)
    for row in rows:
        assert 1.5 < row["x_16bit"] < 9
        assert row["pages trimmed"] or "all" in row["system"] or "never" in row["system"]


def test_costs_are_of_every_size() -> None:
    rows = cost_rows([100, 200], 3)
    assert [row["pages"] for row in rows] == [100, 200]
    assert all(value > 0 for row in rows for value in row.values())
