"""The configuration: what it refuses, and how it travels."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from leankv_kernels import TIERS, RecordLayout
from leankv_kernels.reference.codec import rotate
from leankv_sglang import config as config_module
from leankv_sglang.compression.significance import STRATEGIES
from leankv_sglang.config import (
    CONFIG_ENV,
    ROTATIONS,
    SIGNIFICANCE_NAMES,
    TIER_NAMES,
    LeanKVConfig,
    active_config,
    freeze_thresholds,
    parse_tiers,
    required_config,
)
from leankv_sglang.errors import LeanKVError
from tests.sentences import is_one_sentence

NAN, INF = float("nan"), float("inf")
PER_HEAD = ((1.0, 0.5, INF), (2.0, 0.0, 1.5))


BAD: list[tuple[dict[str, Any], str]] = [
    ({"high": "k9v9"}, "--leankv-tiers"),
    ({"low": ""}, "--leankv-tiers"),
    ({"high": "k4v2", "low": "k8v4"}, "--leankv-tiers"),
    ({"high": "k8v8", "low": "k4v2"}, "--leankv-tiers"),
    ({"rotation": "fourier"}, "--leankv-rotation"),
    ({"significance": "magic"}, "--leankv-significance"),
    ({"near_pages": -1}, "--leankv-near-pages"),
    ({"near_pages": 65}, "--leankv-near-pages"),
    ({"keep_first": -1}, "--leankv-keep-first"),
    ({"keep_first": 2000}, "--leankv-keep-first"),
    ({"alpha_high": -0.1}, "--leankv-alpha-high"),
    ({"alpha_high": NAN}, "--leankv-alpha-high"),
    ({"alpha_high": ((1.0, -1.0), (1.0, 1.0))}, "--leankv-alpha-high"),
    ({"alpha_low": -0.1}, "--leankv-alpha-low"),
    ({"alpha_low": NAN}, "--leankv-alpha-low"),
    ({"alpha_low": INF}, "--leankv-alpha-low"),
    ({"alpha_low": ((0.0, INF),)}, "--leankv-alpha-low"),
    ({"significance": "none", "alpha_low": 0.5}, "--leankv-alpha-low"),
    ({"significance": "none", "alpha_low": ((0.0, 0.5),)}, "--leankv-alpha-low"),
]


@pytest.mark.parametrize(("fields", "flag"), BAD, ids=str)
def test_a_bad_value_is_refused_with_one_sentence_naming_the_flag(fields: dict[str, Any], flag: str) -> None:
    with pytest.raises(LeanKVError) as refusal:
        LeanKVConfig(**fields)
    assert flag in str(refusal.value)
    assert is_one_sentence(str(refusal.value))


@pytest.mark.parametrize("field", ["alpha_high", "alpha_low", "near_pages", "rotation", "significance", "high", "low"])
def test_every_refusal_says_what_was_given(field: str) -> None:
    bad = -7 if field in ("alpha_high", "alpha_low", "near_pages") else "nonsense"
    with pytest.raises(LeanKVError, match=str(bad)):
        LeanKVConfig(**{field: bad})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"alpha_high": INF},
        {"alpha_high": 0.0, "alpha_low": 0.0},
        {"alpha_high": PER_HEAD, "alpha_low": ((0.0, 0.1, 0.2), (0.3, 0.4, 0.5))},
        {"near_pages": 0},
        {"near_pages": 64},
        {"significance": "none"},
        {"rotation": "none", "high": "k4v4", "low": "k4v4", "kernels": "reference", "profile": "mine"},
    ],
    ids=str,
)
def test_json_brings_a_configuration_back_as_it_was(fields: dict[str, Any]) -> None:
    config = LeanKVConfig(**fields)
    text = config.to_json()
    assert "\n" not in text
    assert LeanKVConfig.from_json(text) == config


def test_what_comes_back_is_validated_again() -> None:
    fields = json.loads(LeanKVConfig().to_json()) | {"near_pages": 1000}
    with pytest.raises(LeanKVError, match="--leankv-near-pages"):
        LeanKVConfig.from_json(json.dumps(fields))


def test_the_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        LeanKVConfig().near_pages = 3  # type: ignore[misc]
    frozen = freeze_thresholds([[1, 2], [3, 4]])
    assert frozen == ((1.0, 2.0), (3.0, 4.0))
    assert hash(LeanKVConfig(alpha_high=frozen)) == hash(LeanKVConfig(alpha_high=frozen))


VALID_TIERS = {
    "k8v4,k4v2": ("k8v4", None, "k4v2"),
    "k8v4": ("k8v4", None, "k8v4"),
    " K8V8 , k4v4 ": ("k8v8", None, "k4v4"),
    "k8v8,k8v4": ("k8v8", None, "k8v4"),
    "k8v4,k4v4": ("k8v4", None, "k4v4"),
    "k4v4,k4v2": ("k4v4", None, "k4v2"),
    "k4v2": ("k4v2", None, "k4v2"),
    "k8v4,k4v4,k4v2": ("k8v4", "k4v4", "k4v2"),
    "k8v8, k8v4 ,k4v4": ("k8v8", "k8v4", "k4v4"),
}


@pytest.mark.parametrize("text", VALID_TIERS)
def test_valid_tiers(text: str) -> None:
    high, mid, low = parse_tiers(text)
    assert (high, mid, low) == VALID_TIERS[text]
    assert parse_tiers(LeanKVConfig(high=high, mid=mid, low=low).tiers) == (high, mid, low)


@pytest.mark.parametrize(
    "text", ["", ",", "k8v4,", ",k4v2", "k8v4,k4v2,k4v2", "k8", "k4v2,k8v4", "k8v8,k4v2", "k8v4;k4v2", "high,low"]
)
def test_invalid_tiers_are_refused_by_name(text: str) -> None:
    with pytest.raises(LeanKVError, match="--leankv-tiers") as refusal:
        parse_tiers(text)
    assert is_one_sentence(str(refusal.value))


@pytest.mark.parametrize("high", TIER_NAMES)
@pytest.mark.parametrize("low", TIER_NAMES)
def test_the_configuration_takes_the_pairs_that_the_layout_takes(high: str, low: str) -> None:
    def works(make: Any) -> bool:
        try:
            make()
        except (LeanKVError, ValueError):
            return False
        return True

    layout = works(lambda: RecordLayout(128, 4, 64, TIERS[high], TIERS[low]))
    assert works(lambda: LeanKVConfig(high=high, low=low)) == layout


def test_names_are_those_of_what_they_name() -> None:
    assert set(TIER_NAMES) == set(TIERS)
    assert set(SIGNIFICANCE_NAMES) == set(STRATEGIES)
    for kind in ROTATIONS:
        assert rotate(torch.zeros(1, 64), kind).shape == (1, 64)


def test_the_description_tells_what_was_chosen() -> None:
    text = LeanKVConfig(near_pages=3, alpha_high=1.5, alpha_low=0.25, rotation="none").describe()
    assert all(part in text for part in ("k8v4,k4v2", "near pages 3", "rotation none", "1.5", "0.25"))
    assert "mine" in LeanKVConfig(alpha_high=PER_HEAD, profile="mine").describe()
    assert "alpha" not in LeanKVConfig(significance="none").describe()


def test_thresholds_per_head_can_be_described_without_a_profile() -> None:
    assert "per head" in LeanKVConfig(alpha_high=PER_HEAD).describe()


def test_a_process_finds_the_configuration_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CONFIG_ENV, raising=False)
    assert active_config() is None
    with pytest.raises(LeanKVError, match="launch_server"):
        required_config()
    config = LeanKVConfig(near_pages=2, alpha_high=PER_HEAD)
    monkeypatch.setenv(CONFIG_ENV, config.to_json())
    assert active_config() == required_config() == config


def test_page_sizes_are_ones_the_layout_holds() -> None:
    for page_size in config_module.PAGE_SIZES:
        assert RecordLayout(page_size, 4, 64, TIERS["k8v4"], TIERS["k4v2"]).max_blocks > 0
    assert config_module.DEFAULT_PAGE_SIZE in config_module.PAGE_SIZES


def test_a_low_threshold_above_the_high_one_is_refused() -> None:
    LeanKVConfig(alpha_high=0.04, alpha_low=0.04)
    with pytest.raises(LeanKVError, match="--leankv-alpha-low must not be above --leankv-alpha-high"):
        LeanKVConfig(alpha_high=0.5, alpha_low=0.6)
