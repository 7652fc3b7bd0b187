"""Our flags, told apart from SGLang's and turned into a configuration."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leankv_kernels import available_backends
from leankv_sglang.config import Alphas, LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.server import args
from leankv_sglang.server.args import add_flags, config_from_args, drain_seconds, split_args, with_model_path
from tests.sentences import is_one_sentence


def config_of(*argv: str) -> LeanKVConfig:
    ours, rest = split_args(argv)
    assert rest == []
    config, profile = config_from_args(ours, "nowhere")
    assert profile is None
    return config


def test_without_flags_the_defaults_hold() -> None:
    assert config_of() == LeanKVConfig()


FLAGS: list[tuple[list[str], dict[str, Any]]] = [
    (["--leankv-tiers", "k8v8,k4v4"], {"high": "k8v8", "low": "k4v4"}),
    (["--leankv-tiers=k8v4"], {"high": "k8v4", "low": "k8v4"}),
    (["--leankv-alpha-high", "1.5"], {"alpha_high": 1.5}),
    (["--leankv-alpha-high", "inf"], {"alpha_high": float("inf")}),
    (["--leankv-alpha-high", "0"], {"alpha_high": 0.0}),
    (["--leankv-alpha-low", "0.2"], {"alpha_low": 0.2}),
    (
        ["--leankv-tiers", "k8v4,k4v4,k4v2", "--leankv-alpha-mid", "0.4"],
        {"alpha_mid": 0.4, "high": "k8v4", "mid": "k4v4", "low": "k4v2"},
    ),
    (["--leankv-demote"], {"demote": True}),
    (["--leankv-match", "relaxed", "--leankv-demote"], {"match": "relaxed", "demote": True}),
    (["--leankv-rotation", "none"], {"rotation": "none"}),
    (["--leankv-significance", "none"], {"significance": "none"}),
    (["--leankv-near-pages", "0"], {"near_pages": 0}),
    (["--leankv-window", "0"], {"near_pages": 0}),
    (["--leankv-window=4"], {"near_pages": 4}),
    (["--leankv-keep-first", "2"], {"keep_first": 2}),
    (["--leankv-show-text"], {"show_text": True}),
    (["--leankv-kernels", "reference"], {"kernels": "reference"}),
    (["--leankv-kernels", "auto"], {"kernels": "auto"}),
    (["--leankv-host-memory", "8GiB"], {"host_memory": 8 << 30}),
    (["--leankv-store", "file:/a b"], {"store": "file:/a b"}),
    (["--leankv-store=mooncake://m:1"], {"store": "mooncake://m:1"}),
    (["--leankv-store", "file:a", "--leankv-store-size", "1MiB"], {"store": "file:a", "store_size": 1 << 20}),
    (["--leankv-store", "file:a", "--leankv-load", "never"], {"store": "file:a", "load": "never"}),
]


@pytest.mark.parametrize(("argv", "fields"), FLAGS, ids=str)
def test_each_flag_sets_its_field(argv: list[str], fields: dict[str, Any]) -> None:
    assert config_of(*argv) == LeanKVConfig(**fields)


class Recorder(argparse.ArgumentParser):
    """Keeps every flag that it is given."""

    def __init__(self) -> None:
        super().__init__(add_help=False)
        self.flags: list[argparse.Action] = []

    def add_argument_group(self, *args: Any, **kwargs: Any) -> Any:
        """Flags of every group are its own, except those that argparse makes for itself."""
        return self if hasattr(self, "flags") else super().add_argument_group(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add and keep it."""
        self.flags.append(super().add_argument(*args, **kwargs))
        return self.flags[-1]


@pytest.fixture
def flags() -> list[argparse.Action]:
    """Our flags, as argparse has them."""
    parser = Recorder()
    add_flags(parser)
    return parser.flags


def test_every_flag_of_compression_but_the_profile_is_tried_above(flags: list[argparse.Action]) -> None:
    options = {option for flag in flags for option in flag.option_strings}
    tried = {arg.split("=")[0] for argv, _ in FLAGS for arg in argv}
    assert options - tried == {"--leankv-profile", "--leankv-drain-seconds"}
    assert all(option.startswith("--leankv-") for option in options)


def test_the_help_tells_the_defaults_of_the_configuration(flags: list[argparse.Action]) -> None:
    config = LeanKVConfig()
    helps = {flag.dest.removeprefix("leankv_"): flag.help or "" for flag in flags}
    said_otherwise = {"profile", "alpha_mid", "drain_seconds", "host_memory", "store", "store_size"}
    defaults = {name: getattr(config, name) for name in helps if name not in said_otherwise}
    for name, default in defaults.items():
        said = "off" if default is False else f"{default:g}" if isinstance(default, float) else default
        assert re.search(rf"\(default: {said}[,)]", helps[name])


def test_other_flags_go_to_sglang_untouched_and_in_order() -> None:
    argv = ["--model-path", "m", "--leankv-window", "2", "--page-size", "64", "--help", "--tp=1", "--leankv-tiers=k8v4"]
    ours, rest = split_args(argv)
    assert rest == ["--model-path", "m", "--page-size", "64", "--help", "--tp=1"]
    assert (ours.leankv_near_pages, ours.leankv_tiers) == (2, "k8v4")


@pytest.mark.parametrize("flag", ["--leankv-foo", "--leankv", "--leankv-tier", "--leankv-alpha=1", "--leankv_window"])
def test_a_flag_that_does_not_exist_is_refused_by_name(flag: str) -> None:
    """An abbreviation too: it must not mean something else one day."""
    with pytest.raises(LeanKVError, match=f"^{flag.split('=')[0]} is not a flag; --help "):
        split_args(["--model-path", "m", flag, "3"])


_TAKES_TEXT = (
    "--leankv-tiers",
    "--leankv-rotation",
    "--leankv-significance",
    "--leankv-kernels",
    "--leankv-match",
    "--leankv-host-memory",
    "--leankv-store",
    "--leankv-store-size",
    "--leankv-load",
)
BAD: list[list[str]] = [
    ["--leankv-tiers", "k1v1"],
    ["--leankv-tiers", "k8v4,k8v4,k4v2"],
    ["--leankv-tiers", "k8v4,k8v8,k4v2"],
    ["--leankv-tiers", "k8v8,k8v4,k4v4,k4v2"],
    ["--leankv-alpha-mid", "2.5"],
    ["--leankv-rotation", "fourier"],
    ["--leankv-significance", "magic"],
    ["--leankv-near-pages", "-1"],
    ["--leankv-keep-first", "-1"],
    ["--leankv-alpha-high", "nan"],
    ["--leankv-alpha-low", "inf"],
    ["--leankv-kernels", "fpga"],
    ["--leankv-profile", "no/such/file.json"],
    ["--leankv-host-memory", "much"],
    ["--leankv-host-memory", "-1"],
    ["--leankv-store", "ftp://x"],
    ["--leankv-store", "file:"],
    ["--leankv-store-size", "much"],
    ["--leankv-profile", "small"],
    # As an unset shell variable gives them.
    *([flag, ""] for flag in (*_TAKES_TEXT, "--leankv-profile")),
    ["--leankv-profile", "a" * 300],
    ["--leankv-profile", "/" + "a" * 5000],
    ["--leankv-profile", "/dev/zero"],
    ["--leankv-profile", "/"],
    ["--leankv-alpha-low", "-1"],
    ["--leankv-near-pages", str(10**30)],
    ["--leankv-keep-first", str(-(10**30))],
]


@pytest.mark.parametrize("argv", BAD, ids=lambda argv: argv[0])
def test_a_bad_value_is_refused_with_one_sentence_naming_the_flag(argv: list[str]) -> None:
    with pytest.raises(LeanKVError) as refusal:
        config_of(*argv)
    text = str(refusal.value)
    assert argv[0] in text
    assert argv[1] in text
    assert is_one_sentence(text)


@pytest.mark.parametrize("argv", [["--leankv-keep-first", "two"], ["--leankv-alpha-high", "much"], ["--leankv-tiers"]])
def test_what_is_no_number_at_all_ends_with_the_usage(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refusal:
        split_args(argv)
    assert refusal.value.code == 2
    assert f"argument {argv[0]}:" in capsys.readouterr().err


def test_a_backend_that_does_not_exist_is_refused_and_the_choices_named() -> None:
    with pytest.raises(LeanKVError) as refusal:
        config_of("--leankv-kernels", "fpga")
    assert all(name in str(refusal.value) for name in ("auto", *available_backends()))


@pytest.fixture
def profile_file(tmp_path: Path) -> Callable[..., str]:
    """A small valid profile."""
    path = tmp_path / "small.json"
    model = {"num_layers": 1, "num_kv_heads": 2, "head_dim": 64}
    fields = {"tiers": "k8v8", "rotation": "none", "significance": "attention", "near_pages": 2}
    thresholds = {"alpha_high": [[1, 2]], "alpha_low": 0.5}
    fields |= {"leankv_profile": 2, "model": model, "page_size": 64, "points": {"balanced": thresholds}}
    path.write_text(json.dumps(fields))
    return str(path)


def test_a_profile_decides_everything_but_the_backend(profile_file: str) -> None:
    ours, _ = split_args(["--leankv-profile", profile_file, "--leankv-kernels", "reference"])
    config, profile = config_from_args(ours, "nowhere")
    assert profile is not None
    assert config is profile.config
    assert config == LeanKVConfig(
        *("k8v8", "k8v8", ((1.0, 2.0),), 0.5),
        rotation="none",
        near_pages=2,
        kernels="reference",
        profile="small balanced",
        points=(("balanced", Alphas(((1.0, 2.0),), math.inf, 0.5)),),
    )


BESIDE_A_PROFILE = tuple(f"--leankv-{of}" for of in ("kernels", "demote", "match", "host-memory", "store", "show-text"))
METHOD_FLAGS = [argv for argv, _ in FLAGS if not argv[0].startswith(BESIDE_A_PROFILE)]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--leankv-store-size", "1GiB"], "--leankv-store-size is about the pages of --leankv-store"),
        (["--leankv-load", "always"], "--leankv-load is about the pages of --leankv-store"),
        (["--leankv-store", "file:a", "--leankv-store-size", "0"], "--leankv-store-size is at least 1 MiB"),
        (["--leankv-host-memory", "0"], "--leankv-host-memory is at least 1 MiB, not '0'; leave it out for none"),
        (["--leankv-load", "sometimes"], "--leankv-load takes always, auto, never"),
        (["--leankv-store", "file:a", "--leankv-load", "sometimes"], "--leankv-load takes always, auto, never"),
    ],
)
def test_what_is_wrong_with_a_place_is_said(argv: list[str], said: str) -> None:
    with pytest.raises(LeanKVError, match=said) as refusal:
        config_of(*argv)
    assert is_one_sentence(str(refusal.value))


@pytest.mark.parametrize("argv", METHOD_FLAGS, ids=str)
def test_a_profile_and_a_flag_it_decides_are_refused_together(profile_file: str, argv: list[str]) -> None:
    ours, _ = split_args(["--leankv-profile", profile_file, *argv])
    with pytest.raises(LeanKVError) as refusal:
        config_from_args(ours, "nowhere")
    flag = argv[0].split("=")[0].replace("--leankv-window", "--leankv-near-pages")
    assert str(refusal.value).startswith(f"--leankv-profile decides {flag}")


def test_the_limit_of_a_drain_is_a_time() -> None:
    assert drain_seconds(split_args([])[0]) == 30.0
    assert drain_seconds(split_args(["--leankv-drain-seconds", "0"])[0]) == 0.0
    for wrong in ("-1", "nan", "inf"):
        with pytest.raises(LeanKVError, match="--leankv-drain-seconds is a number of at least 0"):
            drain_seconds(split_args([f"--leankv-drain-seconds={wrong}"])[0])


def test_a_model_of_the_catalog_is_served_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not under the path of the folder that it became."""
    monkeypatch.setattr(args, "resolve_model_path", lambda name: name if name == "/a/folder" else "/home/models/it")
    assert with_model_path(["--tp", "1"]) == (
        ["--model-path", "/home/models/it", "--served-model-name", "SmolLM2-135M-Instruct", "--tp", "1"],
        "/home/models/it",
    )
    assert with_model_path(["--model", "/b/some.gguf"])[0][2:] == ["--served-model-name", "some"]
    assert with_model_path(["--served-model-name=x"])[0][2:] == ["--served-model-name=x"]
    assert with_model_path(["--model-path", "/a/folder"])[0] == ["--model-path", "/a/folder"]
