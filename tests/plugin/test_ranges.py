"""Numbers that can only be a mistake are refused before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.plugin import ranges
from tests.sentences import is_one_sentence

USUAL: dict[str, Any] = {"max_total_tokens": 4096, "page_size": 128, "mem_fraction_static": None}
WRONG: list[dict[str, Any]] = [
    {"max_total_tokens": 1},
    {"max_total_tokens": -5},
    {"max_total_tokens": 511},
    {"max_running_requests": 0},
    {"context_length": -1},
    {"tp_size": 0},
    {"tokenizer_worker_num": 0},
    {"watchdog_timeout": float("nan")},
    {"mem_fraction_static": 0.0},
    {"mem_fraction_static": 1.5},
]


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_what_is_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(LeanKVError) as caught:
        ranges.check_ranges(SimpleNamespace(**{**USUAL, **wrong}))
    assert str(caught.value).startswith(f"--{next(iter(wrong)).replace('_', '-')} ")
    assert is_one_sentence(str(caught.value))


def test_what_is_in_range_passes() -> None:
    ranges.check_ranges(SimpleNamespace(**{**USUAL, "max_total_tokens": None}))
    ranges.check_ranges(SimpleNamespace(**{**USUAL, "max_total_tokens": 512, "max_running_requests": 1}))


def test_a_pool_larger_than_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, LeanKVConfig().to_json())
    monkeypatch.setattr(ranges, "machine_memory", lambda: 1 << 30)
    model = SimpleNamespace(
        get_total_num_kv_heads=lambda: 2,
        get_num_attention_heads=lambda ranks: 4 // ranks,
        head_dim=64,
        v_head_dim=64,
        num_hidden_layers=4,
    )
    args = SimpleNamespace(
        device="cpu", page_size=128, tp_size=1, dp_size=1, max_running_requests=8, max_total_tokens=1 << 40
    )
    with pytest.raises(LeanKVError, match=r"is more than the 1\.0 GiB of this machine hold") as caught:
        ranges.check_memory(model, args)
    assert is_one_sentence(str(caught.value))
    fit = int(str(caught.value).split("; ")[1].split()[0])
    args.max_total_tokens = fit
    ranges.check_memory(model, args)
    args.max_total_tokens = fit + 1
    with pytest.raises(LeanKVError):
        ranges.check_memory(model, args)
    args.tp_size, args.max_total_tokens = 2, fit // 2
    ranges.check_memory(model, args)
    args.device, args.max_total_tokens = "cuda", 1 << 40
    ranges.check_memory(model, args)
