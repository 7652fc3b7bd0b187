"""What the package tests expect of every refusal."""

from __future__ import annotations


def is_one_sentence(text: str) -> bool:
    """One line that ends as a sentence does."""
    return "\n" not in text and text.endswith(".") and not text.endswith("..")
