"""Drawn tokens follow their probabilities, and the noise is a function of seed, position and token alone."""

from __future__ import annotations

import pytest
import torch

from bench.quality.sampling import TOP, choose, gumbel


def test_draws_follow_the_probabilities() -> None:
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count, temperature = 20000, 0.7
    logits = (weights.log() * temperature).expand(count, -1)
    tokens = torch.tensor(choose(logits, range(count), [3] * count, temperature))
    shares = torch.bincount(tokens, minlength=4) / count
    assert shares.tolist() == pytest.approx(weights.tolist(), abs=0.012)


def test_noise_is_gumbels_and_depends_on_all_it_is_given() -> None:
    seed, position, token = (torch.arange(n).view(shape) for n, shape in ((40, (-1, 1, 1)), (50, (-1, 1)), (60, (-1,))))
    noise = gumbel(seed, position, token)
    assert noise.shape == (40, 50, 60)
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01)
    assert float(noise.var()) == pytest.approx(1.645, abs=0.03)
    assert len(noise.unique()) == noise.numel()
    for axis in range(3):
        a, b = noise.movedim(axis, 0)[:-1].flatten(), noise.movedim(axis, 0)[1:].flatten()
        assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 0.02


def test_no_seed_takes_the_likeliest_and_rare_tokens_are_never_drawn() -> None:
    logits = torch.linspace(0, 1, 5 * TOP)[None].expand(300, -1)
    seeds = [None if i % 3 == 0 else i for i in range(300)]
    tokens = choose(logits, seeds, [0] * 300, 5.0)
    assert {token for token, seed in zip(tokens, seeds, strict=True) if seed is None} == {5 * TOP - 1}
    assert min(tokens) >= 4 * TOP
    assert len(set(tokens)) > 30
