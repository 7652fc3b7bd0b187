"""Tokenizers taken out of GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from leankv_sglang.models import ModelError
from leankv_sglang.models.convert import write_model
from leankv_sglang.models.gguf_file import GGUFFile
from leankv_sglang.models.tokenizer import write_tokenizer


def tokenizer_of(gguf: Path, folder: Path) -> Any:
    folder.mkdir()
    file = GGUFFile(gguf)
    write_model(file, folder, quiet=True)
    write_tokenizer(file, folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_round_trip_and_chat_template(make_gguf: Callable[..., Any], tmp_path: Path, architecture: str) -> None:
    pre = {"llama": "smollm", "qwen2": "qwen2"}[architecture]
    gguf, _ = make_gguf(architecture=architecture, tokenizer=True, pre=pre)
    tokenizer = tokenizer_of(gguf, tmp_path / "out")
    text = "<|im_start|>Grüße,  x=10<|im_end|>"
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert (ids[0], ids[-1]) == (258, 259)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (258, 259)
    assert tokenizer.model_max_length == 512
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<|im_start|>hi<|im_end|>"


def test_numbers_are_cut_into_digits_before_blanks_are_merged(make_gguf: Callable[..., Any], tmp_path: Path) -> None:
    gguf, _ = make_gguf(tokenizer=True, pre="smollm")
    tokens = tokenizer_of(gguf, tmp_path / "out").tokenize("a  12")
    assert tokens == ["a", "ĠĠ", "1", "2"]  # GPT-2's own rule leaves one blank to the number


def test_qwen2_composes_accents(make_gguf: Callable[..., Any], tmp_path: Path) -> None:
    gguf, _ = make_gguf(architecture="qwen2", tokenizer=True, pre="qwen2")
    tokenizer_of(gguf, tmp_path / "out")
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))  # AutoTokenizer's class does it anyway
    assert tokenizer.encode("e\u0301").ids == tokenizer.encode("\u00e9").ids


@pytest.mark.parametrize("add_bos", [False, True])
def test_add_bos_flag(make_gguf: Callable[..., Any], tmp_path: Path, add_bos: bool) -> None:
    gguf, _ = make_gguf(tokenizer=True, metadata={"tokenizer.ggml.add_bos_token": add_bos})
    ids = tokenizer_of(gguf, tmp_path / "out")("a").input_ids
    assert ids[:-1] == ([258] if add_bos else [])


def test_unknown_splitting_rules_are_mentioned(
    make_gguf: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gguf, _ = make_gguf(tokenizer=True, pre="martian")
    tokenizer_of(gguf, tmp_path / "out")
    assert "'martian'" in caplog.text


def test_a_file_without_tokenizer_is_refused(make_gguf: Callable[..., Any], tmp_path: Path) -> None:
    gguf, _ = make_gguf()
    with pytest.raises(ModelError, match="has no tokenizer"):
        tokenizer_of(gguf, tmp_path / "out")
