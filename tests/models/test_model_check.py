"""Folders that are no whole model are told apart before anything is loaded, each with its own sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leankv_sglang.models.check import check_model_folder
from leankv_sglang.models.errors import ModelError
from tests.sentences import is_one_sentence


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model of one tensor of four bytes."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"a": "b"}})
    data = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
    (tmp_path / "model.safetensors").write_bytes(data)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def _cut(file: str, to: int) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:to]) and None


def _write(file: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text(text) and None


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (_cut("model.safetensors", -1), "is cut short: it has"),
    (_cut("model.safetensors", 20), "is cut short at 20 bytes"),
    (_cut("model.safetensors", 3), "is cut short at 3 bytes"),
    (_cut("model.safetensors", 0), "is cut short at 0 bytes"),
    (_write("model.safetensors", "<html>not found</html>" * 9), "is not a safetensors file"),
    (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
    (_write("model.safetensors.index.json", '{"weight_map": {"w": "b.safetensors"}}'), "which the model's index lists"),
    (_write("model.safetensors.index.json", "[]"), "lists no weights"),
    (_write("config.json", "{"), "is not a JSON object"),
    (_write("config.json", "[1]"), "is not a JSON object"),
    (_write("config.json", "[" * 200_000), "is not a JSON object"),
    (_write("model.safetensors.index.json", "[" * 200_000), "lists no weights"),
    (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "is not a JSON object"),
    (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "holds no tokenizer"),
]


def test_a_whole_model_passes(folder: Path) -> None:
    check_model_folder(str(folder))
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    check_model_folder(str(folder), weights=False, tokenizer=False)


@pytest.mark.parametrize(("fault", "sentence"), FAULTS, ids=[sentence for _, sentence in FAULTS])
def test_what_is_wrong_with_a_folder_is_said(folder: Path, fault: Callable[[Path], object], sentence: str) -> None:
    fault(folder)
    with pytest.raises(ModelError) as caught:
        check_model_folder(str(folder))
    assert sentence in str(caught.value)
    assert is_one_sentence(str(caught.value))


@pytest.mark.parametrize("name", ["/nowhere/at/all", "./nowhere", "a/b/c"])
def test_a_path_that_is_not_there_is_no_name_of_a_hub(name: str) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        check_model_folder(name)


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        check_model_folder(str(folder / "config.json"))
