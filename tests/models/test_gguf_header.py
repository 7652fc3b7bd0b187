"""GGUF files that state what is not in them."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leankv_sglang.models import ModelError
from leankv_sglang.models import __main__ as cli
from leankv_sglang.models.convert import convert_into
from leankv_sglang.models.gguf_file import GGUFFile
from leankv_sglang.models.gguf_header import MOST_ITEMS, check_header
from tests.sentences import is_one_sentence

UINT8, UINT32, STRING, ARRAY = 0, 4, 8, 9
HUGE = 2**58


def header(tensors: int = 0, fields: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, fields)


def field(kind: int, value: bytes, key: bytes = b"a") -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def nested(depth: int) -> bytes:
    return array(ARRAY, 1) * depth + array(UINT8, 0)


LIES = {
    "an array of 2^58 numbers": header(fields=1) + field(ARRAY, array(UINT32, HUGE)),
    "an array of 2^58 texts": header(fields=1) + field(ARRAY, array(STRING, HUGE)),
    "an array of 2^58 arrays": header(fields=1) + field(ARRAY, array(ARRAY, HUGE)),
    "an array of 2^58 empty arrays": header(fields=1) + field(ARRAY, array(ARRAY, HUGE, array(UINT8, 0) * 8)),
    "an array longer than its file": header(fields=1) + field(ARRAY, array(UINT32, 1000)),
    "arrays in arrays without end": header(fields=1) + field(ARRAY, nested(50_000)),
    "a text of 2^58 bytes": header(fields=1) + field(STRING, struct.pack("<Q", HUGE)),
    "2^58 fields": header(fields=HUGE),
    "2^58 tensors": header(tensors=HUGE),
    "a tensor of 2^31 dimensions": header(tensors=1) + struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31),
    "a value of no type": header(fields=1) + field(77, b""),
    "nothing but a name": b"GGUF",
}


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("padding", [0, 100])
def test_a_file_too_short_for_what_it_states_is_refused_at_once(
    what: str, padding: int, tmp_path: Path, cache_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(LIES[what] + bytes(padding if what != "nothing but a name" else 0))
    with pytest.raises(ModelError, match="is damaged or cut short") as refusal:
        GGUFFile(path)
    assert is_one_sentence(str(refusal.value))
    assert cli.main(["convert", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_more_items_than_any_vocabulary_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    path.write_bytes(header(fields=1) + field(ARRAY, array(UINT8, MOST_ITEMS + 1)) + bytes(MOST_ITEMS + 1))
    with pytest.raises(ModelError, match="an array of"):
        check_header(path)


def test_the_other_byte_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 1))
    with pytest.raises(ModelError, match="written in the other byte order"):
        GGUFFile(path)


HOSTILE: list[dict[str, Any]] = [
    {"llama.block_count": 0},
    {"llama.block_count": 2**32 - 1},
    {"llama.block_count": "two"},
    {"llama.block_count": []},
    {"llama.attention.head_count": 0},
    {"llama.attention.head_count": 2.5},
    {"llama.attention.head_count_kv": 0},
    {"llama.attention.head_count_kv": 3},
    {"llama.embedding_length": 0},
    {"llama.feed_forward_length": 0},
    {"llama.context_length": "long"},
    {"llama.rope.freq_base": 0.0},
    {"llama.rope.freq_base": float("nan")},
    {"llama.rope.freq_base": "much"},
    {"llama.rope.scaling.factor": "much"},
    {"split.count": "two"},
    {"tokenizer.ggml.bos_token_id": "first"},
    {"tokenizer.ggml.token_type": [1]},
]


@pytest.mark.parametrize("metadata", HOSTILE, ids=str)
def test_metadata_that_no_model_has_is_refused(
    make_gguf: Callable[..., Any], tmp_path: Path, metadata: dict[str, Any]
) -> None:
    gguf, _ = make_gguf(metadata=metadata)
    with pytest.raises(ModelError) as refusal:
        convert_into(gguf, tmp_path / "out", sha256="", quiet=True)
    # What comes last, where nothing else is wrong, and would be after the work.
    assert "has no tokenizer" not in str(refusal.value)
    assert is_one_sentence(str(refusal.value))
    assert not (tmp_path / "out").exists()


def test_whatever_is_changed_in_a_file_ends_in_a_model_or_in_one_sentence(
    make_gguf: Callable[..., Any], tmp_path: Path
) -> None:
    gguf, _ = make_gguf(layers=1)
    whole, rng = gguf.read_bytes(), random.Random(0)
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            damaged[rng.randrange(4, 1500)] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        gguf.write_bytes(damaged)
        with pytest.raises(ModelError) as refusal:
            convert_into(gguf, tmp_path / "out", sha256="", quiet=True)
        assert is_one_sentence(str(refusal.value))
