"""The strategies, as the backend uses them: from what was observed of pages to tiers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leankv_kernels import HIGH, LOW
from leankv_kernels.reference.attention import COLUMN_SCORE_ONE
from leankv_kernels.reference.tiers import choose_tiers, features, mean_attention, num_features
from leankv_sglang.compression.build import build_significance
from leankv_sglang.compression.significance import STRATEGIES, FullPages, Predictor, Significance
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError

HEADS, DIM = 2, 16


def pages() -> FullPages:
    """Three pages, six query heads, two KV heads."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, COLUMN_SCORE_ONE, (3, 6, 64), generator=generator)
    key, value = (torch.randn(3, 64, HEADS, DIM, generator=generator).bfloat16() for _ in range(2))
    return FullPages(scores, key, value)


def weights() -> Tensor:
    """Of two layers."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, HEADS, num_features(DIM), generator=generator) * 0.3


def strategy(name: str) -> Significance:
    """Made as for a model of two layers."""
    return Predictor(weights()) if name == "predictor" else build_significance(LeanKVConfig(significance=name))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_gives_one_number_per_token_and_kv_head(name: str) -> None:
    got = strategy(name)(1, pages())
    assert got.shape == (3, HEADS, 64)
    assert got.dtype == torch.float64
    assert bool((got >= 0).all())
    assert STRATEGIES[name].name == name


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_page_is_scored_without_regard_to_its_neighbours(name: str) -> None:
    """To the last bit: the tiers must not depend on which pages are committed together."""
    together = strategy(name)(0, pages())
    for i in range(3):
        alone = strategy(name)(0, FullPages(*(x[i : i + 1] for x in pages())))
        assert torch.equal(together[i : i + 1], alone)


def test_attention_is_the_mean_attention() -> None:
    assert torch.equal(strategy("attention")(0, pages()), mean_attention(pages().column_scores, HEADS))


def test_none_keeps_all_but_the_sinks_low() -> None:
    """With the default thresholds, whatever the scores are."""
    config = LeanKVConfig(significance="none")
    alphas = torch.tensor(config.alphas, dtype=torch.float64)[:, None].expand(3, 2)
    start = torch.tensor([0, 1, 2])
    tiers = choose_tiers(strategy("none")(0, pages()), alphas, start)
    assert tiers[0].tolist() == [[HIGH] * 4 + [LOW] * 60] * 2
    assert bool((tiers[1:] == LOW).all())


def test_the_predictor_is_the_exponential_of_a_weighted_sum() -> None:
    seen = pages()
    got = strategy("predictor")(1, seen).log()
    want = torch.einsum("nhtf,hf->nht", features(seen), weights()[1].double())
    torch.testing.assert_close(got, want.clamp(max=25.0), rtol=0, atol=0.05)


def test_energies_of_key_pairs_do_not_depend_on_the_position() -> None:
    """A rotation of channels i and i + D/2 by any angles leaves every feature but the attention alone."""
    seen = pages()._replace(key=pages().key.double())
    angle = torch.rand(DIM // 2, dtype=torch.float64) * 6
    first, second = seen.key.chunk(2, dim=-1)
    turned = torch.cat([first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()], dim=-1)
    torch.testing.assert_close(features(seen._replace(key=turned)), features(seen))


def test_extremes_stay_finite() -> None:
    zero = FullPages(*(torch.zeros_like(x) for x in pages()))
    huge = FullPages(pages().column_scores, pages().key * 1e4, pages().value * 1e4)
    for seen in (zero, huge):
        got = strategy("predictor")(0, seen)
        assert bool(got.isfinite().all())
        assert bool((got >= 0).all())


def test_a_predictor_comes_with_a_profile() -> None:
    with pytest.raises(LeanKVError, match="predictor comes with a profile"):
        LeanKVConfig(significance="predictor")
    gone = LeanKVConfig(significance="predictor", predictor="no/such/profile.json")
    with pytest.raises(LeanKVError, match=r"--leankv-profile no/such/profile\.json: cannot be read"):
        build_significance(gone)
