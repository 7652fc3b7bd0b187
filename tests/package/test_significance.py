"""The strategies, as the backend uses them: from column scores to tiers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leankv_kernels import HIGH, LOW
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.reference.commit import choose_tiers, mean_attention
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.significance import STRATEGIES


def scores() -> Tensor:
    """Column scores of three pages, six query heads."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, COLUMN_SCORE_ONE, (3, 6, 64), generator=generator)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_gives_one_number_per_token_and_kv_head(name: str) -> None:
    got = STRATEGIES[name]()(scores(), 2)
    assert got.shape == (3, 2, 64)
    assert got.dtype == torch.float64
    assert bool((got >= 0).all())
    assert STRATEGIES[name].name == name


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_page_is_scored_without_regard_to_its_neighbours(name: str) -> None:
    strategy = STRATEGIES[name]()
    assert torch.equal(strategy(scores(), 2)[1:2], strategy(scores()[1:2], 2))


def test_attention_is_the_mean_attention() -> None:
    assert torch.equal(STRATEGIES["attention"]()(scores(), 3), mean_attention(scores(), 3))


def test_none_keeps_all_but_the_sinks_low() -> None:
    """With the default thresholds, whatever the scores are."""
    config = LeanKVConfig(significance="none")
    alphas = torch.tensor(config.alphas, dtype=torch.float64)[:, None].expand(3, 2)
    start = torch.tensor([True, False, False])
    tiers = choose_tiers(STRATEGIES["none"]()(scores(), 2), alphas, start)
    assert tiers[0].tolist() == [[HIGH] * 4 + [LOW] * 60] * 2
    assert bool((tiers[1:] == LOW).all())
