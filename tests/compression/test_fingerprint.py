"""The mark of a model's weights, where the files that hold them are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from leankv_sglang.compression.fingerprint import fingerprint
from leankv_sglang.errors import LeanKVError
from tests.sentences import is_one_sentence


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]",
        (2**62).to_bytes(8, "little") + b"{}",
        (26).to_bytes(8, "little") + b'{"k_proj.": "data_offsets"}',
    ],
    ids=["empty", "a pointer of Git LFS", "noise", "a list", "too long a header", "no offsets"],
)
def test_damaged_weights_have_no_fingerprint(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(LeanKVError, match="is not a safetensors file, or is cut short") as refusal:
        fingerprint(tmp_path)
    assert is_one_sentence(str(refusal.value))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(LeanKVError, match="cannot be read"):
        fingerprint(tmp_path)
