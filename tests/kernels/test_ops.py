"""The registry of backends."""

from __future__ import annotations

import pytest

from leankv_kernels import available_backends, get_ops
from leankv_kernels.ops import BACKEND_ENV, Ops


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the machine running the tests decides nothing."""
    monkeypatch.delenv(BACKEND_ENV, raising=False)


def test_the_specification_is_always_there() -> None:
    assert "reference" in available_backends()
    assert available_backends() == sorted(set(available_backends()))
    ops = get_ops("cpu", "reference")
    assert ops.name == "reference"
    assert all(callable(getattr(ops, name)) for name in Ops._fields if name not in ("name", "variant", "takes_bounds"))


@pytest.mark.parametrize("name", [None, "auto"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "meta"])
def test_auto_finds_a_backend_for_every_device(name: str | None, device: str) -> None:
    assert get_ops(device, name).name in available_backends()


@pytest.mark.parametrize("name", [None, "auto"])
@pytest.mark.parametrize("choice", ["reference", "auto", ""])
def test_the_environment_chooses_where_nobody_else_did(
    monkeypatch: pytest.MonkeyPatch, name: str | None, choice: str
) -> None:
    automatic = get_ops("cpu").name
    monkeypatch.setenv(BACKEND_ENV, choice)
    assert get_ops("cpu", name).name == (choice if choice == "reference" else automatic)


def test_an_explicit_choice_beats_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(BACKEND_ENV, "no-such-backend")
    assert get_ops("cpu", "reference").name == "reference"


def check_refused(message: str) -> None:
    assert "'fpga'" in message
    assert all(choice in message for choice in ("auto", *available_backends()))


def test_an_unknown_backend_is_refused_and_the_choices_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a silent fallback, whoever asked."""
    with pytest.raises(ValueError, match="does not exist") as refusal:
        get_ops("cpu", "fpga")
    check_refused(str(refusal.value))
    monkeypatch.setenv(BACKEND_ENV, "fpga")
    with pytest.raises(ValueError, match="does not exist") as refusal:
        get_ops("cpu")
    check_refused(str(refusal.value))
