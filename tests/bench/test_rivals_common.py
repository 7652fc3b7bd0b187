"""How rivals are measured: loss, bytes held, rows, and going on after an interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench.quality.items import digest_of
from bench.quality.rivals.common import COLUMNS, Profile, Sample, Store, loss, tensor_bytes, to_rows


def _sample(profile: str, window: int, tokens: int = 10, **changes: object) -> Sample:
    sample = Sample("system", profile, window, "model", raw=100, raw_context=80, tokens=tokens, kl=1.0 + window)
    sample = replace(sample, top1=9.0, nll=31.0, nll_raw=30.0, held_context=40, held=50)
    return replace(sample, **changes)  # type: ignore[arg-type]


def test_equal_logits_lose_nothing() -> None:
    logits = torch.randn(5, 11)
    sums = loss(logits, logits, torch.arange(5))
    assert sums["kl"] == pytest.approx(0, abs=1e-6)
    assert sums["top1"] == 5
    assert sums["nll"] == sums["nll_raw"] > 0


def test_loss_is_what_probabilities_say() -> None:
    raw, compressed = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    sums = loss(raw, compressed, torch.tensor([0]))
    assert sums["kl"] == pytest.approx(0.5 * torch.tensor(3.0).log().item())
    assert sums["top1"] == 0
    assert sums["nll"] == pytest.approx(-torch.tensor(0.25).log().item())


def test_bytes_count_memory_once_wherever_it_hangs() -> None:
    codes = torch.zeros(8, dtype=torch.uint8)
    layer = SimpleNamespace(codes=(codes, {"scale": torch.zeros(2, dtype=torch.float16)}), again=codes, empty=None)
    assert tensor_bytes(SimpleNamespace(layers=[layer], name="cache")) == 8 + 4


def test_bytes_of_a_slice_are_its_own() -> None:
    assert tensor_bytes([torch.zeros(1, 2, 16, 4)[:, :, :8]]) == 2 * 8 * 4 * 4


def test_row_has_every_column_and_averages_windows() -> None:
    texts = [torch.arange(4) + i for i in range(2)]
    (row,) = to_rows([_sample("p", 1), _sample("p", 0, note="why")], texts)
    assert tuple(row) == COLUMNS
    assert row["windows"] == [digest_of([0, 1, 2, 3]), digest_of([1, 2, 3, 4])]
    assert (row["ratio"], row["ratio_context"], row["ratio_if_freed"]) == (2, 2, None)
    assert row["kl_tail"] == pytest.approx(0.15)
    assert row["spread"] == pytest.approx(0.1 / 2**0.5)
    assert row["ppl_rel_tail"] == pytest.approx(torch.tensor(0.1).expm1().item())
    assert (row["n"], row["note"], row["kl"]) == (2, "why", None)


def test_row_of_masked_memory_tells_both_ratios() -> None:
    (row,) = to_rows([_sample("p", 0, held=100, held_if_freed=25)])
    assert (row["ratio"], row["ratio_if_freed"], row["spread"]) == (1, 4, None)


def test_failure_is_a_row_without_numbers() -> None:
    (row,) = to_rows([_sample("p", 0, tokens=0, note="failed: no")])
    assert (row["ratio"], row["kl_tail"], row["n"], row["note"]) == (None, None, 0, "failed: no")


def test_store_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, profile = tmp_path / "deep" / "samples.jsonl", Profile("system", "p")
    Store(path).add(_sample("p", 0))
    again = Store(path)
    assert again.samples == [_sample("p", 0)]
    assert again.has(profile, 0, "model")
    assert not again.has(profile, 1, "model")
    assert not again.has(Profile("system", "q"), 0, "model")
