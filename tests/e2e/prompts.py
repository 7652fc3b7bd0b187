"""Prompts that need no evaluation data: passages of this repository's own sources."""

from __future__ import annotations

from pathlib import Path

from bench.common import data
from tests.tiny_models import VOCABULARY

ROOT = Path(__file__).resolve().parents[2]
OWN_TEXT = "\n".join(p.read_text() for p in sorted([*ROOT.glob("*.md"), *ROOT.glob("kernels/**/*.py")]))


def passages(count: int, low: int, high: int, seed: int = 0) -> list[list[int]]:
    """Token ids of ``count`` passages, lengths from low to high in equal ratios."""
    return data.random_prompts(count, low, high, seed, OWN_TEXT)


def tiny_passages(count: int, low: int, high: int, seed: int = 0) -> list[list[int]]:
    """The same for the tiny model, whose tokens are fewer: tokens that come back as they do in text."""
    return [[token % VOCABULARY for token in passage] for passage in passages(count, low, high, seed)]
