"""Prompts of real text on a machine without data: this repository's own documents and sources."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
_PROSE = ("README.md", "CONTRIBUTING.md", "docs/*.md")
_SOURCES = ("leankv_sglang/**/*.py", "kernels/**/*.py", "bench/**/*.py")


def text() -> str:
    """Prose first."""
    files = [file for pattern in (*_PROSE, *_SOURCES) for file in sorted(ROOT.glob(pattern))]
    return "\n\n".join(file.read_text() for file in files)


@cache
def tokens(folder: str, characters: int | None = None) -> list[int]:
    """Of the text, or so much of it, by a model's tokenizer."""
    from transformers import AutoTokenizer

    ids: list[int] = AutoTokenizer.from_pretrained(folder)(text()[:characters]).input_ids
    return ids


@cache
def random_tokens(vocabulary: int, count: int = 1 << 20) -> list[int]:
    """For a model that has no tokenizer, and whose weights mean nothing."""
    rng = random.Random(0)
    return [rng.randrange(3, vocabulary) for _ in range(count)]


def passages(ids: list[int], count: int, low: int, high: int, seed: int) -> list[list[int]]:
    """Prompts from anywhere in the text, lengths from low to high in equal ratios."""
    rng = random.Random(seed)
    lengths = [round(low * (high / low) ** (i / max(count - 1, 1))) for i in range(count)]
    starts = [rng.randrange(len(ids) - length) for length in lengths]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
