"""The draw by seed and position: its hash bit by bit, distribution and filters, and that company changes nothing."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leankv_patches.seeded_draw import allowed, draw, hashes

ALL = 1 << 30
"""SGLang's top-k where there is none."""
SEEDS = [0, 1, 42, -1, 2**31, -(2**63), 2**63 - 1, 0x0123456789ABCDEF]


def murmur3(data: bytes) -> int:
    """MurmurHash3_x86_32 with seed 0, of whole words."""
    low, state = 0xFFFFFFFF, 0
    for (word,) in struct.iter_unpack("<I", data):
        word = word * 0xCC9E2D51 & low
        word = (word << 15 | word >> 17) & low
        state ^= word * 0x1B873593 & low
        state = (state << 13 | state >> 19) & low
        state = (state * 5 + 0xE6546B64) & low
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & low
    return state ^ state >> 16


def probabilities(rows: int, tokens: int, seed: int, levels: int = 0) -> torch.Tensor:
    """Random ones; with ``levels`` many of them equal, as logits of 16 bits make them."""
    logits = torch.randn(rows, tokens, generator=torch.Generator().manual_seed(seed)) * 2
    return torch.softmax((logits * levels).round() / levels if levels else logits, -1)


def test_the_specification_of_the_hash_is_right() -> None:
    """A published value."""
    assert murmur3(b"test") == 0xBA6BD213


def test_the_hash_is_murmur3_of_seed_position_and_token() -> None:
    positions = torch.arange(len(SEEDS)) * 1_000_003
    found = hashes(torch.tensor(SEEDS), positions, 37).long() & 0xFFFFFFFF
    for row, seed in enumerate(SEEDS):
        for token in range(37):
            assert found[row, token] == murmur3(struct.pack("<qII", seed, int(positions[row]), token))


def test_tokens_come_as_often_as_they_are_probable() -> None:
    """Over 20,000 positions; the most that four standard deviations allow."""
    count, probs = 20_000, torch.tensor([0.5, 0.25, 0.15, 0.09, 0.01, 0.0])
    drawn = draw(probs.expand(count, -1), torch.full((count,), 7), torch.arange(count))
    often = torch.bincount(drawn, minlength=6) / count
    assert often[5] == 0
    assert ((often - probs).abs() <= 4 * (probs * (1 - probs) / count).sqrt()).all()


@pytest.mark.parametrize("other", ["seed", "position"])
def test_another_seed_or_position_is_another_draw(other: str) -> None:
    probs, same = torch.full((64, 1000), 1e-3), torch.full((64,), 5)
    changing = torch.arange(64)
    drawn = draw(probs, changing, same) if other == "seed" else draw(probs, same, changing)
    assert len(set(drawn.tolist())) > 55


@given(st.integers(0, 10_000), st.integers(1, 9), st.sampled_from([0.3, 0.9, 1.0]), st.sampled_from([0.0, 0.2]))
def test_filters_are_those_of_the_definition(seed: int, top_k: int, top_p: float, min_p: float) -> None:
    """Taken token by token from the most probable one, of equals the first."""
    probs = probabilities(1, 12, seed, levels=2)
    passes = allowed(probs, torch.tensor([top_k]), torch.tensor([top_p]), torch.tensor([min_p]))[0].tolist()
    row = probs[0].double()
    order, before, expected = sorted(range(12), key=lambda token: (-row[token], token)), 0.0, [False] * 12
    for rank, token in enumerate(order):
        boundary = abs(before - top_p) < 1e-6 or abs(row[token] - row[order[0]] * min_p) < 1e-6
        expected[token] = rank < top_k and before <= top_p and bool(row[token] >= row[order[0]] * min_p)
        if boundary:  # Either is right.
            expected[token] = passes[token]
        before += float(row[token])
    assert passes == expected
    assert passes[order[0]]


def test_no_filter_keeps_every_token() -> None:
    """Though many probabilities add up to more than one in float32."""
    probs = torch.full((1, 100_000), 1.0001e-5)
    assert allowed(probs, torch.tensor([ALL]), torch.tensor([1.0]), torch.tensor([0.0])).all()


def test_tokens_that_do_not_pass_are_not_drawn() -> None:
    probs = probabilities(500, 50, 3)
    passes = allowed(probs, torch.full((500,), 3), torch.ones(500), torch.zeros(500))
    drawn = draw(probs, torch.full((500,), 1), torch.arange(500), passes).long()
    assert passes.gather(1, drawn[:, None]).all()
    assert (passes.sum(1) == 3).all()


@given(st.integers(0, 10_000))
def test_company_changes_nothing(seed: int) -> None:
    """A row alone, without filters, draws what it draws among others whose filters make the batch sort."""
    probs = probabilities(5, 301, seed, levels=4)
    # Columns of a table, as the sampler has them: even one row of them has no dense layout.
    seeds, positions = torch.randint(-(2**62), 2**62, (5, 2))[:, 0], torch.arange(5) + seed
    top_ks = torch.tensor([ALL, 1, 40, ALL, 7])
    top_ps, min_ps = torch.tensor([1.0, 1.0, 0.7, 0.9, 1.0]), torch.tensor([0.0, 0.0, 0.0, 0.1, 0.3])
    together = draw(probs, seeds, positions, allowed(probs, top_ks, top_ps, min_ps))
    assert draw(probs[:1], seeds[:1], positions[:1]) == together[:1]
    for row in range(5):
        one = slice(row, row + 1)
        passes = allowed(probs[one], top_ks[one], top_ps[one], min_ps[one])
        assert draw(probs[one], seeds[one], positions[one], passes) == together[one]
    # The greedy row takes the first of the most probable tokens.
    assert together[1] == probs[1].argmax()
