"""The accuracy of one request: what is refused, what is the same, and how it travels in the cache salt."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv_sglang.compression.request_params import BALANCED, Accuracy, accuracy_of, named, resolve, salted
from leankv_sglang.config import Alphas, LeanKVConfig
from leankv_sglang.errors import LeanKVError
from tests.sentences import is_one_sentence

NAN, INF = float("nan"), float("inf")
CONFIG = LeanKVConfig(alpha_high=1.0, alpha_low=0.1)
NAMED = tuple(named(CONFIG))
PER_HEAD = LeanKVConfig(alpha_high=((1.0, 2.0),), alpha_low=((0.0, 0.5),))
NONE = LeanKVConfig(significance="none")
PREDICTED = LeanKVConfig(significance="predictor", predictor="weights")
POINTS = {
    "near-lossless": Alphas(0.5, 0.2),
    "balanced": Alphas(((1.0, 2.0),), 0.5),
    "small": Alphas(INF, 1.0, ((0.0, 9.0),)),
}
PROFILED = LeanKVConfig(
    *("k8v4", "k4v2", INF, ((0.0, 9.0),)),
    alpha_mid=1.0,
    mid="k4v4",
    profile="a model's small",
    points=tuple(POINTS.items()),
)

BAD: list[tuple[Any, str]] = [
    ("near-lossless", "leankv takes"),
    (5, "leankv takes"),
    (True, "leankv takes"),
    ([], "leankv takes"),
    ([{"profile": "small"}], "leankv takes"),
    ({}, "leankv takes"),
    ({"profile": "tiny"}, "leankv.profile takes near-lossless, balanced, small, not 'tiny'"),
    ({"profile": None}, "leankv.profile takes"),
    ({"profile": ["small"]}, "leankv.profile takes"),
    ({"profile": "small", "alpha_low": 0}, "not both"),
    ({"alpha": 1}, "no field 'alpha'"),
    ({"x" * 500 + "\n": 1}, "no field"),
    ({"alpha_high": "1"}, "leankv.alpha_high is a number"),
    ({"alpha_high": True}, "leankv.alpha_high is a number"),
    ({"alpha_high": None}, "leankv.alpha_high is a number"),
    ({"alpha_high": -0.5}, "leankv.alpha_high is a number of at least 0, not -0.5"),
    ({"alpha_high": NAN}, "leankv.alpha_high is a number"),
    ({"alpha_high": 10**400}, "leankv.alpha_high is a number"),
    ({"alpha_low": INF}, "leankv.alpha_low is a number"),
    ({"alpha_low": -1}, "leankv.alpha_low is a number"),
    ({"alpha_low": 2}, "leankv.alpha_low must not be above leankv.alpha_high"),
    ({"alpha_high": 0.05}, "leankv.alpha_low must not be above leankv.alpha_high"),
]


@pytest.mark.parametrize(("field", "says"), BAD, ids=lambda x: repr(x)[:40])
def test_a_bad_field_is_refused_with_one_sentence(field: Any, says: str) -> None:
    with pytest.raises(LeanKVError) as refusal:
        resolve(field, CONFIG)
    text = str(refusal.value)
    assert says in text
    assert is_one_sentence(text)
    assert len(text) < 300


@pytest.mark.parametrize("config", [NONE, PREDICTED], ids=["none", "predictor"])
@pytest.mark.parametrize("field", [{"alpha_high": 2, "alpha_low": 0.1}, {"alpha_high": 0}, {"alpha_low": 0.5}])
def test_thresholds_are_multiples_of_uniform_attention_or_refused(config: LeanKVConfig, field: Any) -> None:
    """On a predictor's scale 2 and 0.1 would prune nine tokens of ten."""
    with pytest.raises(LeanKVError, match="takes thresholds where tokens are scored by attention") as raised:
        resolve(field, config)
    assert is_one_sentence(str(raised.value))
    assert config.significance in str(raised.value)
    assert '{"profile": "near-lossless"}' in str(raised.value)


def test_the_named_ones() -> None:
    near_lossless, own, small = (resolve({"profile": name}, CONFIG) for name in ("near-lossless", BALANCED, "small"))
    # Below every significance: a token without any attention is high as well.
    assert near_lossless.alphas == Alphas(-1.0, INF, 0.0)
    assert own.alphas == Alphas(1.0, INF, 0.1)
    assert small.alphas == Alphas(INF, INF, 0.0)
    assert [a.describe() for a in (near_lossless, own, small)] == [{"profile": name} for name in NAMED]


def test_a_name_of_earlier_releases_means_what_it_did() -> None:
    assert resolve({"profile": "lossless"}, CONFIG) == resolve({"profile": "near-lossless"}, CONFIG)
    assert resolve({"profile": "lossless"}, CONFIG).describe() == {"profile": "near-lossless"}


@pytest.mark.parametrize(
    "field",
    [None, {"profile": BALANCED}, {"alpha_high": 1}, {"alpha_low": 0.1}, {"alpha_high": 1.0, "alpha_low": 0.1}],
    ids=str,
)
def test_the_servers_own_adds_nothing_to_the_key(field: Any) -> None:
    accuracy = resolve(field, CONFIG)
    assert accuracy.is_own
    assert accuracy.describe() == {"profile": BALANCED}
    for salt in (None, "", "mine", ["mine", "yours"]):
        assert salted(accuracy, salt) == salt


def test_equal_thresholds_are_one_accuracy() -> None:
    assert resolve({"alpha_high": 2}, CONFIG) == resolve({"alpha_low": 0.1, "alpha_high": 2.0}, CONFIG)
    assert resolve({"alpha_high": 2, "alpha_low": 0}, CONFIG) == resolve({"alpha_high": 2, "alpha_low": -0.0}, CONFIG)
    assert resolve({"alpha_high": INF, "alpha_low": 0}, CONFIG) == resolve({"profile": "small"}, CONFIG)
    # A server whose own thresholds are those of a name.
    assert resolve({"profile": "small"}, LeanKVConfig(alpha_high=INF)).is_own
    named = [{"profile": "near-lossless"}, {"profile": "small"}]
    different = [*named, {"alpha_high": 0, "alpha_low": 0}, {"alpha_high": 2}]
    assert len({resolve(field, CONFIG).spec for field in different}) == 4


def test_without_significance_thresholds_tell_nothing_apart() -> None:
    assert resolve({"profile": "small"}, NONE).is_own
    assert not resolve({"profile": "near-lossless"}, NONE).is_own


def test_thresholds_per_head_stay_where_none_are_given() -> None:
    half = resolve({"alpha_high": 3}, PER_HEAD)
    assert half.alphas == PER_HEAD.alphas._replace(high=3.0)
    assert half.describe() == {"alpha_high": 3.0}
    assert accuracy_of(salted(half, None), PER_HEAD) == half
    assert resolve({"profile": "balanced"}, PER_HEAD).is_own


def test_a_profiles_points_are_the_names() -> None:
    for name, alphas in POINTS.items():
        accuracy = resolve({"profile": name}, PROFILED)
        assert accuracy.alphas == alphas
        assert accuracy.describe() == {"profile": name}
        assert accuracy.is_own == (name == "small")
        assert accuracy_of(salted(accuracy, "mine"), PROFILED) == accuracy
    with pytest.raises(LeanKVError, match="takes near-lossless, balanced, small, not 'tiny'"):
        resolve({"profile": "tiny"}, PROFILED)


def test_a_middle_threshold_needs_a_middle_tier() -> None:
    assert resolve({"alpha_mid": 0.3}, PROFILED).alphas == PROFILED.alphas._replace(mid=0.3)
    with pytest.raises(
        LeanKVError, match=r"leankv\.alpha_mid needs a server with a middle tier; this one has k8v4,k4v2"
    ):
        resolve({"alpha_mid": 0.3}, CONFIG)


numbers = st.floats(0, 1e300, allow_nan=False)
fields = st.one_of(
    st.none(),
    st.sampled_from([{"profile": name} for name in NAMED]),
    st.tuples(numbers, numbers).map(lambda p: {"alpha_high": max(p), "alpha_low": min(p)}),
)
salts = st.one_of(
    st.none(), st.text(), st.text().map("leankv:".__add__), st.sampled_from(["leankv:small;", "leankv:;"])
)


@given(fields, salts)
def test_an_accuracy_survives_the_salt(field: Any, salt: str | None) -> None:
    accuracy = resolve(field, CONFIG)
    assert accuracy_of(salted(accuracy, salt), CONFIG) == accuracy


@given(fields, salts, fields, salts)
def test_different_pairs_never_give_one_salt(
    field_a: Any, salt_a: str | None, field_b: Any, salt_b: str | None
) -> None:
    a, b = resolve(field_a, CONFIG), resolve(field_b, CONFIG)
    # SGLang takes an empty salt for none.
    same = (a.spec, salt_a or None) == (b.spec, salt_b or None)
    assert ((salted(a, salt_a) or None) == (salted(b, salt_b) or None)) == same


def test_a_list_of_salts_is_one_per_prompt() -> None:
    small = resolve({"profile": "small"}, CONFIG)
    assert salted(small, ["a", ""]) == ["leankv:small;a", "leankv:small;"]
    # What SGLang refuses is left for it to refuse.
    assert salted(small, ["a", 5, None]) == ["leankv:small;a", 5, None]
    assert salted(small, 5) == 5


@pytest.mark.parametrize(
    "salt",
    [
        *("leankv:", "leankv:;x", "leankv:tiny;", "leankv:1;", "leankv:1,2;", "leankv:nan,,0;", "leankv:-1,,0.0;"),
        *("leankv:0,,5;", "leankv:a,b,c;", "leankv:1,,inf;", "other", "", None),
    ],
)
def test_a_salt_that_nobody_made_is_the_servers_own(salt: str | None) -> None:
    """Other fronts (gRPC) hand a client's salt on as it is."""
    assert accuracy_of(salt, CONFIG) == Accuracy("", Alphas(1.0, INF, 0.1), BALANCED)
