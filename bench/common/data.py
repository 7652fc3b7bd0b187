"""Evaluation texts, from the folder ``shared/data`` beside the checkout or ``LEANKV_DATA``."""

from __future__ import annotations

import gzip
import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any


def data_dir() -> Path:
    """Where the evaluation data lie.

    Raises:
        FileNotFoundError: one sentence saying how to point to it.
    """
    named = os.environ.get("LEANKV_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    if not folder.is_dir():
        raise FileNotFoundError(f"no evaluation data in {folder}: set LEANKV_DATA to the folder that holds wikitext-2")
    return folder


def wikitext(part: str | None = None) -> str:
    """The WikiText-2 test text; unknown words read "the", as in the first measurements (docs/design.md).

    Args:
        part: ``calibration``, the first half by characters, or ``heldout``, the second, which calibration never sees
            and from which every system's windows are cut, rivals' too; None for all.

    Raises:
        ValueError: for another part.
    """
    text = (data_dir() / "wikitext-2" / "wiki.test.raw").read_text().replace("<unk>", "the")
    if part is None:
        return text
    if part not in ("calibration", "heldout"):
        raise ValueError(f"WikiText has the parts calibration and heldout, not {part!r}")
    middle = len(text) // 2
    return text[:middle] if part == "calibration" else text[middle:]


def mt_bench() -> list[list[str]]:
    """The turns of each MT-bench question."""
    lines = (data_dir() / "mt-bench" / "question.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [row["turns"] for row in rows]


def gsm8k() -> list[tuple[str, str]]:
    """Question and final number of each GSM8K test problem."""
    lines = (data_dir() / "gsm8k" / "test.jsonl").read_text().splitlines()
    rows: list[dict[str, str]] = [json.loads(line) for line in lines]
    return [(row["question"], row["answer"].rpartition("####")[2].strip()) for row in rows]


def babilong(which: str, length: int) -> list[dict[str, str]]:
    """Rows (input, question, target) of a BABILong set, ``qa1`` or ``qa2``, at ``length`` thousand tokens."""
    with gzip.open(data_dir() / "babilong" / f"{which}_{length}k.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


@cache
def ruler_words(kind: str) -> list[str]:
    """RULER's words of a kind: ``noun``, ``adjective`` or ``verb``."""
    return (data_dir() / "ruler-words" / f"{kind}list.txt").read_text().split()


@cache
def default_tokens(text: str | None = None) -> list[int]:
    """Token ids of ``text``, by default WikiText, for the default model."""
    from transformers import AutoTokenizer

    from leankv_sglang.models import ensure_model

    tokenizer = AutoTokenizer.from_pretrained(ensure_model(quiet=True))
    ids: list[int] = tokenizer(text or wikitext()).input_ids
    return ids


def drawn_prompts(count: int, low: int, high: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Token ids of ``count`` prompts for any model, drawn one by one, lengths as in :func:`random_prompts`."""
    rng = random.Random(seed)
    lengths = [round(low * (high / low) ** (i / max(count - 1, 1))) for i in range(count)]
    return [rng.choices(range(vocabulary), k=length) for length in lengths]


def random_prompts(count: int, low: int, high: int, seed: int = 0, text: str | None = None) -> list[list[int]]:
    """Token ids of ``count`` passages, lengths from low to high in equal ratios, for the default model.

    The passages are of ``text``, by default WikiText.
    """
    ids = default_tokens(text)
    rng = random.Random(seed)
    lengths = [round(low * (high / low) ** (i / max(count - 1, 1))) for i in range(count)]
    starts = [rng.randrange(len(ids) - high) for _ in lengths]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
