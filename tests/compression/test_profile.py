"""Profiles: files that load, and every way in which one can be broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from leankv_kernels.reference.tiers import num_features
from leankv_sglang.compression.build import build_significance
from leankv_sglang.compression.fingerprint import fingerprint
from leankv_sglang.compression.profile import SHIPPED, find_profile
from leankv_sglang.compression.profile_file import load_profile, pack_predictor, read_predictor
from leankv_sglang.compression.significance import Predictor
from leankv_sglang.config import Alphas, LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models.shape import CacheShape
from tests.sentences import is_one_sentence

NAN, INF = float("nan"), float("inf")
SHAPE = CacheShape(layers=2, kv_heads=3, head_dim=64)
TABLE = [[1.0, 0.5, 2.0], [1.5, 1.5, INF]]
VALID: dict[str, Any] = {
    "leankv_profile": 2,
    "model": {"name": "tiny", "num_layers": 2, "num_kv_heads": 3, "head_dim": 64},
    "page_size": 128,
    "tiers": "k8v4,k4v4,k4v2",
    "rotation": "hadamard",
    "significance": "attention",
    "near_pages": 1,
    "points": {
        "near-lossless": {"alpha_high": 0, "alpha_low": 0},
        "balanced": {"alpha_high": TABLE, "alpha_mid": 0.5, "alpha_low": 0.1},
    },
}


def with_point(**changes: Any) -> dict[str, Any]:
    """The fields of a profile whose balanced point has some changed, or left out where None is given."""
    point = {k: v for k, v in (VALID["points"]["balanced"] | changes).items() if v is not None}
    return {"points": {"balanced": point}}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Returns a function that writes a valid profile with some fields changed, or left out where None is given."""

    def write(changes: dict[str, Any] | None = None, name: str = "my-profile.json") -> str:
        fields = {k: v for k, v in (VALID | (changes or {})).items() if v is not None}
        path = tmp_path / name
        path.write_text(json.dumps(fields))
        return str(path)

    return write


def test_a_profile_of_an_earlier_release_loads(write: Callable[..., str]) -> None:
    """It calls near pages ``window``."""
    path = write({"near_pages": None, "window": 2})
    assert load_profile(path).config.near_pages == 2


def test_a_point_of_an_earlier_release_is_found_by_both_names(write: Callable[..., str]) -> None:
    """It calls the nearest one ``lossless``."""
    for written in ("lossless", "near-lossless"):
        path = write({"points": {written: {"alpha_high": 2.0, "alpha_mid": 1.0, "alpha_low": 0.1}}})
        for asked in ("lossless", "near-lossless"):
            config = load_profile(path, asked).config
            assert (config.alpha_high, config.points[0][0]) == (2.0, "near-lossless")


def test_a_profile_with_thresholds_per_head_loads(write: Callable[..., str]) -> None:
    profile = load_profile(write(), kernels="reference")
    config = profile.config
    assert profile.shape == SHAPE
    assert config.alpha_high == ((1.0, 0.5, 2.0), (1.5, 1.5, INF))
    assert (config.alpha_mid, config.alpha_low) == (0.5, 0.1)
    assert (config.tiers, config.rotation, config.significance, config.near_pages) == (
        *("k8v4,k4v4,k4v2", "hadamard", "attention"),
        1,
    )
    assert (config.kernels, config.profile) == ("reference", "tiny balanced")
    assert dict(config.points) == {"near-lossless": Alphas(0.0, INF, 0.0), "balanced": config.alphas}
    profile.check_model(SHAPE)
    assert LeanKVConfig.from_json(config.to_json()) == config


def test_a_point_is_chosen_by_name(write: Callable[..., str]) -> None:
    path = write()
    for text in (f"{path}:near-lossless", path):
        profile = find_profile(text, "nowhere")
        assert profile.config.profile == f"tiny {'near-lossless' if ':' in text else 'balanced'}"
    assert find_profile(f"{path}:near-lossless", "nowhere").config.alphas == Alphas(0.0, INF, 0.0)
    with pytest.raises(LeanKVError, match="has no point 'small'; it has near-lossless, balanced"):
        find_profile(f"{path}:small", "nowhere")


def test_a_name_without_a_shipped_profile_says_how_to_calibrate() -> None:
    with pytest.raises(
        LeanKVError, match=r"neither a file nor .* python -m leankv_sglang\.calibrate --model nowhere\.$"
    ):
        find_profile("small", "nowhere")


def test_other_weights_of_the_same_shape_are_refused(write: Callable[..., str], tmp_path: Path) -> None:
    for folder, fill in (("one", 1.0), ("two", 2.0)):
        weights = {"model.layers.0.self_attn.k_proj.weight": torch.full((4, 4), fill), "norm": torch.ones(4)}
        (tmp_path / folder).mkdir()
        save_file(weights, str(tmp_path / folder / "model.safetensors"))
    one, two, neither = (str(tmp_path / name) for name in ("one", "two", "."))
    mark = fingerprint(one)
    assert mark is not None
    assert mark == fingerprint(one) != fingerprint(two)
    assert fingerprint(neither) is None
    profile = load_profile(write(with_model(fingerprint=mark)))
    profile.check_model(SHAPE, one)
    profile.check_model(SHAPE, neither)
    with pytest.raises(LeanKVError, match="made for other weights of the same shape"):
        profile.check_model(SHAPE, two)


def with_predictor(weights: torch.Tensor | str) -> dict[str, Any]:
    text = weights if isinstance(weights, str) else pack_predictor(weights)
    return {"significance": "predictor", "predictor": text}


def test_a_predictor_comes_back_as_it_was_written(write: Callable[..., str]) -> None:
    weights = torch.randn(2, 3, num_features(64)).half().double()
    config = load_profile(write(with_predictor(weights))).config
    assert config.predictor
    assert torch.equal(read_predictor(config.predictor), weights)
    # Another process has the configuration alone.
    assert isinstance(build_significance(LeanKVConfig.from_json(config.to_json())), Predictor)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("no base64", '"predictor" must be text in base64'),
        (torch.zeros(2, 3, 7), f'"predictor" must hold {num_features(64)} half-precision numbers'),
        (torch.full((2, 3, num_features(64)), NAN), '"predictor" must hold finite numbers'),
    ],
    ids=["not base64", "too short", "not finite"],
)
def test_a_broken_predictor_is_refused(write: Callable[..., str], weights: Any, says: str) -> None:
    check_refused(write(with_predictor(weights)), says)


def test_a_strategy_without_its_predictor_is_refused(write: Callable[..., str]) -> None:
    check_refused(write({"significance": "predictor"}), "predictor comes with a profile")


def test_what_ships_loads_at_every_point() -> None:
    shipped = sorted(SHIPPED.glob("*.json"))
    assert shipped
    for path in shipped:
        for point in ("near-lossless", "balanced", "small"):
            profile = load_profile(str(path), point)
            assert profile.config.profile == f"{path.stem} {point}"
            assert profile.fingerprint
            build_significance(profile.config)


def test_another_page_size_is_refused(write: Callable[..., str]) -> None:
    profile = load_profile(write())
    profile.check_page_size(128)
    with pytest.raises(LeanKVError, match=r"made for --page-size 128, not 64"):
        profile.check_page_size(64)


@pytest.mark.parametrize("number", [0, 2, 0.75])
def test_a_profile_with_one_number_for_all_heads_loads(write: Callable[..., str], number: float) -> None:
    config = load_profile(write(with_point(alpha_high=number, alpha_low=0))).config
    assert config.alpha_high == number
    assert isinstance(config.alpha_high, float)
    assert config.alpha_low == 0


def test_a_profile_without_a_name_goes_by_its_file(write: Callable[..., str]) -> None:
    assert load_profile(write(with_model(name=None))).config.profile == "my-profile balanced"


def check_refused(path: str, says: str) -> None:
    """One sentence with the flag, the file and the reason."""
    with pytest.raises(LeanKVError) as refusal:
        load_profile(path)
    text = str(refusal.value)
    assert text.startswith(f"--leankv-profile {path}: ")
    assert says in text
    assert is_one_sentence(text)


def with_model(**changes: Any) -> dict[str, Any]:
    return {"model": {k: v for k, v in (VALID["model"] | changes).items() if v is not None}}


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("no version", {"leankv_profile": None}, "not a LeanKV profile of version 2"),
    ("another version", {"leankv_profile": 1}, "not a LeanKV profile of version 2"),
    ("unknown fields", {"alpha": 1, "beta": 2}, "unknown fields: alpha, beta"),
    *((f"no {name}", {name: None}, f"lacks the fields {name}") for name in sorted(VALID) if name[:2] != "le"),
    ("a model without heads", with_model(num_kv_heads=None), "num_layers, num_kv_heads, head_dim"),
    ("a model of no layers", with_model(num_layers=0), "positive whole numbers"),
    ("a model of 10^30 layers", with_model(num_layers=10**30), "positive whole numbers of at most"),
    ("a model of 10^30 heads", with_model(num_kv_heads=10**30), "positive whole numbers of at most"),
    ("heads of 10^30 numbers", with_model(head_dim=10**30), "positive whole numbers of at most"),
    ("a name of two lines", with_model(name="one\ntwo"), '"name" of "model" must be a line of text'),
    ("a name that no terminal shows", with_model(name="\ud800"), '"name" of "model" must be a line of text'),
    ("a fingerprint that is a number", with_model(fingerprint=7), '"fingerprint" of "model" must be a line'),
    ("10^30 near pages", {"near_pages": 10**30}, "--leankv-near-pages"),
    ("a rotation in an object", {"rotation": {}}, "--leankv-rotation"),
    ("a significance that is a number", {"significance": 1}, "--leankv-significance"),
    ("a model of a part of a head", with_model(num_kv_heads=1.5), "positive whole numbers"),
    ("a model of true layers", with_model(num_layers=True), "positive whole numbers"),
    ("a model that is a name", {"model": "Llama"}, "positive whole numbers"),
    ("too few layers", with_point(alpha_high=TABLE[:1]), '"alpha_high" must be 2 layers of 3 KV heads'),
    ("too many layers", with_point(alpha_low=[[0, 0, 0]] * 3), '"alpha_low" must be 2 layers of 3 KV heads'),
    ("too few heads", with_point(alpha_high=[[1, 1, 1], [1, 1]]), '"alpha_high" must be 2 layers of 3 KV heads'),
    ("no layers", with_point(alpha_high=[]), '"alpha_high" must be 2 layers of 3 KV heads'),
    ("a flat list", with_point(alpha_high=[1, 1, 1]), '"alpha_high" must be a number or a list per layer'),
    ("a list too deep", with_point(alpha_high=[[[1]] * 3] * 2), '"alpha_high" must be a number or a list per layer'),
    ("words for thresholds", with_point(alpha_high="one"), '"alpha_high" must be a number or a list per layer'),
    (
        "a hole in the table",
        with_point(alpha_high=[[1, 1, 1], [1, None, 1]]),
        '"alpha_high" must be a number or a list',
    ),
    ("a negative threshold", with_point(alpha_high=-1), '"alpha_high" must hold numbers of at least 0'),
    ("a negative head", with_point(alpha_low=[[0, 0, 0], [0, -0.5, 0]]), '"alpha_low" must hold numbers of at least 0'),
    ("not a number", with_point(alpha_high=NAN), '"alpha_high" must hold numbers of at least 0'),
    ("not a number in a head", with_point(alpha_low=[[0, NAN, 0], [0, 0, 0]]), '"alpha_low" must hold numbers'),
    ("an infinite alpha_low", with_point(alpha_low=INF), "--leankv-alpha-low"),
    ("unknown tiers", {"tiers": "k3v3"}, "--leankv-tiers"),
    ("tiers that are no pair", {"tiers": "k4v2,k8v4"}, "--leankv-tiers"),
    ("tiers in a list", {"tiers": ["k8v4", "k4v2"]}, "--leankv-tiers"),
    ("an unknown rotation", {"rotation": "fourier"}, "--leankv-rotation"),
    ("an unknown significance", {"significance": "magic"}, "--leankv-significance"),
    ("pruning without significance", {"significance": "none"}, "--leankv-alpha-low"),
    ("half a page near", {"near_pages": 1.5}, '"near_pages" must be a whole number of pages'),
    ("a true number of near pages", {"near_pages": True}, '"near_pages" must be a whole number of pages'),
    ("too many near pages", {"near_pages": 1000}, "--leankv-near-pages"),
    ("half a first page", {"keep_first": 0.5}, '"keep_first" must be a whole number of pages'),
    ("less than no first page", {"keep_first": -1}, "--leankv-keep-first is a number of pages"),
    ("pages of another size", {"page_size": 100}, '"page_size" must be one of 64, 128, 256'),
    ("points that are none", {"points": []}, '"points" must give thresholds by name'),
    ("no points", {"points": {}}, '"points" must give thresholds by name'),
    ("a point with a strange name", {"points": {"a;b": {}}}, '"points" must give thresholds by name'),
    ("a point without thresholds", {"points": {"small": {"alpha_high": 1}}}, "point small lacks alpha_low"),
    ("a middle threshold without a middle tier", {"tiers": "k8v4,k4v2"}, "--leankv-alpha-mid"),
]


@pytest.mark.parametrize(("changes", "says"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_a_broken_profile_is_refused_by_name(write: Callable[..., str], changes: dict[str, Any], says: str) -> None:
    check_refused(write(changes), says)


NO_NUMBERS = {
    "a table by layer name": {"0": 1},
    "an empty table": {},
    "a number beyond any float": 10**400,
    "digits in a string": "11",
    "true": True,
    "strings in the table": [["1", "1", "1"]] * 2,
}


@pytest.mark.parametrize("what", NO_NUMBERS)
def test_thresholds_that_only_look_like_numbers_are_refused(write: Callable[..., str], what: str) -> None:
    check_refused(write(with_point(alpha_high=NO_NUMBERS[what])), '"alpha_high"')


def test_values_of_another_width_are_part_of_the_model(write: Callable[..., str]) -> None:
    (profile := load_profile(write(with_model(v_head_dim=32)))).check_model(CacheShape(2, 3, 64, 32))
    with pytest.raises(LeanKVError, match=r"head_dim 64 \(values 32\), this one has .* head_dim 64;"):
        profile.check_model(SHAPE)
    for wrong in (0, "32", None, True, 4097):
        check_refused(write({"model": VALID["model"] | {"v_head_dim": wrong}}), '"v_head_dim" of "model"')


@pytest.mark.parametrize(
    "shape",
    [CacheShape(3, 3, 64), CacheShape(2, 4, 64), CacheShape(2, 3, 128), CacheShape(2, 3, 64, 32)],
    ids=CacheShape.describe,
)
def test_another_model_is_refused_with_both_shapes(write: Callable[..., str], shape: CacheShape) -> None:
    profile = load_profile(write(with_model(name=None)))
    with pytest.raises(LeanKVError) as refusal:
        profile.check_model(shape)
    text = str(refusal.value)
    assert "--leankv-profile" in text
    assert "my-profile" in text
    for part in (SHAPE, shape):
        assert f"{part.layers} layers, {part.kv_heads} KV heads, head_dim {part.head_dim}" in text
    assert is_one_sentence(text)
