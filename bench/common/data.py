"""Evaluation texts, from the folder that ``bench.common.data_folder`` finds.

Each reader raises ``MissingDataError`` where its file is not there.
"""

from __future__ import annotations

import gzip
import json
import random
from functools import cache
from typing import Any

from bench.common.data_folder import FETCH, data_file


def wikitext(part: str | None = None) -> str:
    """The WikiText-2 test text; unknown words read "the", as in the first measurements (docs/design.md).

    Args:
        part: ``calibration``, the first half by characters, or ``heldout``, the second, which calibration never sees
            and from which every system's windows are cut, rivals' too; None for all.

    Raises:
        ValueError: for another part.
    """
    text = data_file("wikitext-2/wiki.test.raw").read_text().replace("<unk>", "the")
    if part is None:
        return text
    if part not in ("calibration", "heldout"):
        raise ValueError(f"WikiText has the parts calibration and heldout, not {part!r}")
    middle = len(text) // 2
    return text[:middle] if part == "calibration" else text[middle:]


def mt_bench() -> list[list[str]]:
    """The turns of each MT-bench question."""
    lines = data_file("mt-bench/question.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return [row["turns"] for row in rows]


def gsm8k() -> list[tuple[str, str]]:
    """Question and final number of each GSM8K test problem."""
    how = f"it has no stand-in; where GitHub can be reached, {FETCH}"
    lines = data_file("gsm8k/test.jsonl", how).read_text().splitlines()
    rows: list[dict[str, str]] = [json.loads(line) for line in lines]
    return [(row["question"], row["answer"].rpartition("####")[2].strip()) for row in rows]


def babilong(which: str, length: int) -> list[dict[str, str]]:
    """Rows (input, question, target) of a BABILong set, ``qa1`` or ``qa2``, at ``length`` thousand tokens."""
    how = "docs/benchmarks.md#data says where it comes from; put it there, or set LEANKV_DATA to a folder that has it"
    with gzip.open(data_file(f"babilong/{which}_{length}k.jsonl.gz", how), "rt") as lines:
        return [json.loads(line) for line in lines]


def mooncake_trace() -> list[dict[str, Any]]:
    """The requests of Mooncake's hour of conversations: when, how long, and the hashes of their blocks."""
    return [json.loads(line) for line in data_file("mooncake-traces/conversation_trace.jsonl").read_text().splitlines()]


@cache
def ruler_words(kind: str) -> list[str]:
    """RULER's words of a kind: ``noun``, ``adjective`` or ``verb``."""
    return data_file(f"ruler-words/{kind}list.txt").read_text().split()


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
