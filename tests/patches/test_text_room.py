"""Texts that cannot fit are refused without being tokenized; none that fits is."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from leankv_patches.text_room import room_for_text

WORDS = ["hello world   this is text, text of many words " * 20, "   " * 40, "é ä e\u0301 a\u0308 한글 \U0001f600" * 9]


@cache
def _trained(normalizer: str = "", split: str = "ByteLevel", strips: bool = False, lacks: str = "") -> Any:
    made = Tokenizer(models.BPE())
    if normalizer:
        made.normalizer = getattr(normalizers, normalizer)()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.pre_tokenizer = (
        level if split == "ByteLevel" else pre_tokenizers.Sequence([getattr(pre_tokenizers, split)(), level])
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(WORDS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    if lacks:
        config = json.loads(made.to_str())
        vocabulary = {word: i for i, word in enumerate(config["model"]["vocab"]) if lacks not in word}
        config["model"]["vocab"] = {word: i for i, word in enumerate(vocabulary)}
        config["model"]["merges"] = [pair for pair in config["model"]["merges"] if lacks not in "".join(pair)]
        made = Tokenizer.from_str(json.dumps(config))
    if strips:
        made.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True)])
    return PreTrainedTokenizerFast(tokenizer_object=made)


KINDS: list[dict[str, Any]] = [
    {},
    {"normalizer": "NFC"},
    {"normalizer": "NFKC"},
    {"normalizer": "NFD"},
    {"normalizer": "Lowercase"},
    {"normalizer": "Strip"},
    {"split": "Whitespace"},
    {"split": "Digits"},
    {"strips": True},
    # How byte-level vocabularies write "\x04".
    {"lacks": "\u0104"},
]
PIECES = [
    "hello",
    " ",
    "   ",
    "a\u0308",
    "\u03b1\u0313\u0300\u0345",
    "한",
    "\x04",
    "\u1100\u1161\u11a8",
    "<|end|>",
    "7",
    "\n",
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(st.tuples(st.sampled_from(PIECES), st.integers(1, 60)), max_size=6))
def test_no_text_that_fits_is_refused(kind: dict[str, Any], pieces: list[tuple[str, int]]) -> None:
    tokenizer = _trained(**kind)
    text = "".join(piece * times for piece, times in pieces)
    room = room_for_text(tokenizer, len(tokenizer.encode(text)))
    assert room is not None
    room.check(text)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_one_that_cannot_fit_is_refused(kind: dict[str, Any]) -> None:
    tokenizer = _trained(**kind)
    room = room_for_text(tokenizer, 10)
    assert room is not None
    room.check("a" * room.characters)
    with pytest.raises(
        ValueError, match=f"has {room.characters + 1} .* at most {room.characters} can fit .* 10 tokens"
    ):
        room.check("a" * (room.characters + 1))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ({"normalizer": "NFC"}, "a\u0308"),
        ({"normalizer": "Strip"}, " "),
        ({"split": "Whitespace"}, " "),
        ({"strips": True}, " "),
        ({"lacks": "\u0104"}, "\x04"),
    ],
    ids=str,
)
def test_what_is_dropped_or_composed_is_not_counted(kind: dict[str, Any], text: str) -> None:
    room = room_for_text(_trained(**kind), 10)
    assert room is not None
    room.check("a" + text * (room.characters - 1))


def test_tokens_that_stand_for_any_text_leave_it_unbounded() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    assert room_for_text(PreTrainedTokenizerFast(tokenizer_object=words), 10) is None
    collapsing = _trained()
    config = json.loads(collapsing.backend_tokenizer.to_str())
    for normalizer in (
        {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "},
        {"type": "Replace", "pattern": {"String": "ab"}, "content": "c"},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
        | {"lowercase": True},
    ):
        made = Tokenizer.from_str(json.dumps({**config, "normalizer": normalizer}))
        assert room_for_text(PreTrainedTokenizerFast(tokenizer_object=made), 10) is None
    cutting = Tokenizer.from_str(json.dumps(config))
    cutting.enable_truncation(5)
    assert room_for_text(PreTrainedTokenizerFast(tokenizer_object=cutting), 10) is None
    assert room_for_text(object(), 10) is None
