"""Heads on tensor-parallel ranks: how many each has, which thresholds are theirs, and what cannot be shared."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sglang.srt.runtime_context as context
import torch

from leankv_sglang.compression.thresholds import rank_heads
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models import ranks
from leankv_sglang.models.ranks import kv_heads_on, query_heads_on, uneven
from leankv_sglang.plan import main
from leankv_sglang.server import early_checks
from tests.sentences import is_one_sentence

GPU, CPU = True, False


def _model(query_heads: int, kv_heads: int) -> SimpleNamespace:
    return SimpleNamespace(get_num_attention_heads=lambda n: query_heads // n, get_total_num_kv_heads=lambda: kv_heads)


@pytest.mark.parametrize(
    ("query_heads", "kv_heads", "count", "here", "expected"),
    [
        (32, 8, 1, GPU, (32, 8)),
        (32, 8, 4, GPU, (8, 2)),
        (32, 8, 16, GPU, (2, 1)),  # two ranks hold a KV head, and half of its queries each
        (8, 1, 4, GPU, (2, 1)),
        (32, 8, 4, CPU, (8, 2)),
        (8, 1, 4, CPU, (8, 1)),  # three have zeros
        (9, 3, 2, CPU, (6, 2)),
    ],
)
def test_a_rank_has_what_sglang_deals_out(
    query_heads: int, kv_heads: int, count: int, here: bool, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "has_accelerator", lambda: here)
    model = _model(query_heads, kv_heads)
    assert (query_heads_on(model, count), kv_heads_on(model, count)) == expected


@pytest.mark.parametrize(
    ("kv_heads", "count", "filled_up", "held"),
    [
        (4, 2, False, [[0, 1], [2, 3]]),
        (2, 4, False, [[0], [0], [1], [1]]),
        (4, 2, True, [[0, 1], [2, 3]]),
        (2, 4, True, [[0], [1], [1], [1]]),
        (3, 2, True, [[0, 1], [2, 2]]),
    ],
)
def test_a_rank_has_the_thresholds_of_its_heads(
    kv_heads: int, count: int, filled_up: bool, held: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = torch.arange(kv_heads).expand(5, -1)
    for rank, heads in enumerate(held):
        parallel = SimpleNamespace(attn_tp_rank=rank, attn_tp_size=count)
        monkeypatch.setattr(context, "get_parallel", lambda parallel=parallel: parallel)
        assert rank_heads(table, len(heads), filled_up).tolist() == [heads] * 5


def test_what_cannot_be_shared() -> None:
    assert [uneven(*heads) for heads in ((32, 8, 4), (32, 8, 16), (8, 1, 8), (9, 3, 1))] == [None] * 4
    assert uneven(9, 3, 2) == "9 query heads cannot be divided by 2 ranks"
    assert uneven(12, 3, 2) == "3 KV heads cannot be divided by 2 ranks, nor the ranks by them"
    assert uneven(12, 4, 6) == "4 KV heads cannot be divided by 6 ranks, nor the ranks by them"


HEADS: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 12, "num_key_value_heads": 6}


@pytest.mark.parametrize("config", [HEADS | {"num_key_value_heads": 3}, HEADS | {"swa_num_attention_heads": 5}])
def test_a_gpu_refuses_that_before_sglang_is_imported(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU fills up, and says nothing; nor does anybody of heads that a config.json does not give."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(early_checks, "has_accelerator", lambda: CPU)
    early_checks.check_served(str(tmp_path), 2)
    monkeypatch.setattr(early_checks, "has_accelerator", lambda: GPU)
    early_checks.check_served(str(tmp_path), 1)
    with pytest.raises(LeanKVError, match=r"with --tp-size 2: its .* cannot be divided") as refusal:
        early_checks.check_served(str(tmp_path), 2)
    assert is_one_sentence(str(refusal.value))
    for other in (HEADS, {"n_head": 3}, {"num_attention_heads": "7"}):
        (tmp_path / "config.json").write_text(json.dumps(other))
        early_checks.check_served(str(tmp_path), 2)


def test_a_plan_is_of_one_rank(capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond as many ranks as KV heads, pages do not get smaller, but each row has fewer scores."""
    flags = ["--model", "Llama-3-8B", "--memory", "16GiB", "--tp-size"]
    shown = []
    for count in (1, 4, 8, 16):
        assert main([*flags, str(count)]) == 0
        shown.append(capsys.readouterr().out)
    for said, heads in zip(shown[1:], ("8 query heads on 2", "4 query heads on 1", "2 query heads on 1"), strict=True):
        assert f"32 layers, {heads} KV heads of 128 on each of" in said
    assert [_plain(said) for said in shown] == [131_072, 16_384 * 32, 131_072 * 8, 131_072 * 8]
    assert main([*flags, "3"]) == 0
    assert "32 query heads cannot be divided by 3 ranks: SGLang refuses that on GPUs" in capsys.readouterr().out
    assert main([*flags, "0"]) == 2


def _plain(said: str) -> int:
    """Tokens that 16 bits hold."""
    line = next(line for line in said.splitlines() if line.startswith("16 bits, stock SGLang"))
    return int(line.split()[-2].replace(",", ""))
