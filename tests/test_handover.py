"""How a configuration of any length reaches the processes that the launcher starts."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from leankv_kernels.reference.tiers import num_features
from leankv_sglang import handover
from leankv_sglang.compression.profile_file import load_profile, pack_predictor, read_predictor
from leankv_sglang.config import CONFIG_ENV, LeanKVConfig, active_config, required_config
from leankv_sglang.environment import prepare_environment
from leankv_sglang.errors import LeanKVError
from leankv_sglang.handover import LONGEST, fetch, leave
from tests.sentences import is_one_sentence

ONE_VARIABLE = 128 << 10
"""Bytes that Linux takes for one variable of a new process."""
LARGE = "x" * (ONE_VARIABLE + 1)
READS_IT = (
    "import hashlib; from leankv_sglang.config import required_config; "
    "print(hashlib.sha256(required_config().to_json().encode()).hexdigest())"
)


def profile_of(path: Path, layers: int, kv_heads: int, digits: int) -> str:
    """Writes a profile with three points, three tiers and a predictor, its thresholds of so many digits."""
    rng = random.Random(0)

    def table() -> list[list[float]]:
        return [[round(rng.uniform(1, 2), digits) for _ in range(kv_heads)] for _ in range(layers)]

    document: dict[str, Any] = {
        "leankv_profile": 2,
        "model": {"name": "big", "num_layers": layers, "num_kv_heads": kv_heads, "head_dim": 64},
        "page_size": 128,
        "tiers": "k8v4,k4v4,k4v2",
        "rotation": "hadamard",
        "significance": "predictor",
        "near_pages": 1,
        "predictor": pack_predictor(torch.zeros(layers, kv_heads, num_features(64))),
        "points": {
            name: {"alpha_high": table(), "alpha_mid": table(), "alpha_low": table()}
            for name in ("near-lossless", "balanced", "small")
        },
    }
    path.write_text(json.dumps(document))
    return str(path)


def digest_of(config: LeanKVConfig) -> str:
    return hashlib.sha256(config.to_json().encode()).hexdigest()


def _tell(pipe: Any) -> None:
    pipe.send(digest_of(required_config()))


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "kv_heads", "digits"), [(80, 8, 16), (40, 40, 3)], ids=str)
def test_the_profile_of_a_large_model_reaches_child_processes(
    tmp_path: Path, layers: int, kv_heads: int, digits: int
) -> None:
    config = load_profile(profile_of(tmp_path / "big.json", layers, kv_heads, digits)).config
    assert len(config.to_json()) > ONE_VARIABLE
    with mock.patch.dict(os.environ):
        prepare_environment(config)
        assert required_config() == config
        said = subprocess.run([sys.executable, "-c", READS_IT], capture_output=True, text=True, check=True)
        assert said.stdout.strip() == digest_of(config)
        # As SGLang starts schedulers and tokenizer workers.
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("spawn").Process(target=_tell, args=(theirs,))
        child.start()
        assert ours.poll(60)
        assert ours.recv() == digest_of(config)
        child.join()


@pytest.mark.parametrize("text", ["", "{}", "x" * LONGEST, "x" * (LONGEST + 1), LARGE, "é" * LONGEST * 2], ids=len)
def test_a_text_of_any_length_comes_back(text: str) -> None:
    left = leave(text)
    assert len(left) <= LONGEST
    assert fetch(left) == text
    assert leave(text) == left


def test_what_was_left_cannot_be_changed() -> None:
    path = leave(LARGE).rpartition(":")[2]
    with pytest.raises(OSError, match=r"not permitted|denied"), open(path, "r+b", buffering=0) as file:
        file.write(b"y")


def test_another_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = leave(LeanKVConfig(near_pages=2).to_json() + " " * LONGEST)
    head = left.rpartition(":")[0]
    kept = tmp_path / "kept"
    monkeypatch.setenv(CONFIG_ENV, f"{head}:{kept}")
    for text, says in ((None, "cannot be read (No such file or directory)"), ("{}", "has been changed since")):
        if text is not None:
            kept.write_text(text)
        with pytest.raises(LeanKVError) as refusal:
            active_config()
        assert says in str(refusal.value)
        assert is_one_sentence(str(refusal.value))


def test_it_is_read_once_and_not_for_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LeanKVConfig(near_pages=3)
    monkeypatch.setenv(CONFIG_ENV, leave(config.to_json() + " " * LONGEST))
    assert required_config() == config
    monkeypatch.setattr(handover, "open", lambda *_: pytest.fail("read again"), raising=False)
    assert required_config() is required_config()


def test_the_predictor_of_a_profile_that_was_changed_since_is_refused(tmp_path: Path) -> None:
    path = profile_of(tmp_path / "mine.json", 2, 3, 3)
    config = load_profile(path).config
    assert config.predictor
    assert read_predictor(config.predictor, config.predictor_digest).shape[:2] == (2, 3)
    Path(path).write_text(Path(path).read_text() + "\n")
    with pytest.raises(LeanKVError, match="has been changed since the server started") as refusal:
        read_predictor(config.predictor, config.predictor_digest)
    assert is_one_sentence(str(refusal.value))
