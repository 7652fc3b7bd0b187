"""What a server takes that was told nothing about compression."""

from __future__ import annotations

import pytest

from leankv_sglang.compression.profile import shipped_profile
from leankv_sglang.compression.profile_file import load_profile
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models import resolve_model_path
from leankv_sglang.server.args import config_from_args, page_size_of, split_args
from tests.sentences import is_one_sentence


@pytest.fixture(scope="module")
def model() -> str:
    return resolve_model_path(None)


def _config(model: str, *argv: str, page_size: int | None = None) -> LeanKVConfig:
    return config_from_args(split_args(argv)[0], model, page_size)[0]


def test_the_shipped_profile_serves_without_loss(model: str) -> None:
    shipped = shipped_profile(model)
    assert shipped is not None
    near_lossless = load_profile(str(shipped), "near-lossless").config
    assert _config(model) == near_lossless
    assert _config(model, page_size=128) == near_lossless
    # What is said about the cache leaves the method alone.
    assert _config(model, "--leankv-demote").alphas == near_lossless.alphas


@pytest.mark.parametrize(
    "argv", [("--leankv-profile", "none"), ("--leankv-tiers", "k8v4,k4v2"), ("--leankv-window", "1")]
)
def test_whoever_says_more_gets_what_was_said(model: str, argv: tuple[str, ...]) -> None:
    assert _config(model, *argv) == LeanKVConfig()


def test_other_pages_and_other_models_have_no_profile(model: str, tmp_path: object) -> None:
    assert _config(model, page_size=64) == LeanKVConfig()
    assert _config(str(tmp_path)) == LeanKVConfig()
    assert _config("somebody/some-model") == LeanKVConfig()


def test_an_empty_name_is_not_taken_for_any(model: str) -> None:
    """``--leankv-profile "$PROFILE"`` of an unset variable."""
    shipped = shipped_profile(model)
    for text in ("", f"{shipped}:"):
        with pytest.raises(LeanKVError, match="--leankv-profile takes a name") as refusal:
            _config(model, "--leankv-profile", text)
        assert is_one_sentence(str(refusal.value))


@pytest.mark.parametrize(
    ("rest", "size"),
    [
        ((), None),
        (("--page-size", "64"), 64),
        (("--port", "1", "--page-size=256"), 256),
        (("--page-size",), None),
        (("--page-size", "many"), None),
        (("--page-size", "9" * 5000), None),
    ],
)
def test_the_page_size_is_found_among_the_flags(rest: tuple[str, ...], size: int | None) -> None:
    assert page_size_of(list(rest)) == size
