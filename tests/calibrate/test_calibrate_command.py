"""``python -m leankv_sglang.calibrate`` from end to end, on a small random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from leankv_sglang.calibrate import __main__ as command
from leankv_sglang.calibrate import explore, run
from leankv_sglang.compression.fingerprint import fingerprint
from leankv_sglang.compression.profile_file import load_profile
from leankv_sglang.offline.packed import PackedModel
from tests.calibrate.conftest import SMALL, TOKENS
from tests.sentences import is_one_sentence
from tests.tiny_models import VOCABULARY, tiny_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("tiny"), layers=2))


pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.slow
@pytest.mark.parametrize("significance", ["predictor", "attention"])
def test_a_calibration_writes_a_profile_that_serves(model: str, significance: str, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    target = ("--target-ratio", "4.0", "--name", "mine")
    assert command.main(["--model", model, "--out", str(out), "--significance", significance, *SMALL, *target]) == 0
    profile = load_profile(str(out))
    assert profile.fingerprint == fingerprint(model)
    assert [name for name, _ in profile.config.points] == ["mine"]
    measured = json.loads(out.read_text())["points"]["mine"]["measured"]
    assert measured["ratio"] >= 4.0
    # What the search measured is what the profile gives.
    packed, _ = PackedModel.load(model)
    ids = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.inference_mode():
        cache = packed.cache(profile.config, profile.page_size, 1, len(ids))
        state = cache.new(len(ids))
        packed.prefill(cache, [(state, ids)])
        ratio = len(ids) * packed.shape.token_bytes / cache.context_bytes(state)
    assert ratio == pytest.approx(measured["ratio"], rel=0.15)


@pytest.mark.slow
def test_another_target_needs_no_gradients(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    argv = ["--model", model, *SMALL, "--target-ratio", "4.0"]
    assert command.main([*argv, "--out", str(first)]) == 0

    def refused(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(explore, "capture", refused)
    assert command.main([*argv, "--out", str(second)]) == 0
    assert first.read_text() == second.read_text()
    with pytest.raises(AssertionError):
        command.main([*argv, "--out", str(second), "--keep-all"])
    # The other point is of the same predictor, so one profile can hold both.
    assert command.main([*argv, "--out", str(second), "--add", "--name", "other"]) == 0
    both, alone = json.loads(second.read_text()), json.loads(first.read_text())
    assert both.pop("points") == dict.fromkeys(("custom", "other"), alone["points"]["custom"])
    assert alone.pop("points")
    assert both == alone


@pytest.mark.slow
def test_points_are_added_only_to_what_they_fit(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "mine.json")
    argv = ["--model", model, *SMALL, "--target-ratio", "4.0", "--out", out]
    assert command.main([*argv, "--add"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert command.main(argv) == 0
    before = Path(out).read_text()
    assert command.main([*argv, "--add", "--window", "2"]) == 2
    assert "has another near_pages" in capsys.readouterr().err
    assert command.main([*argv, "--add", "--seed", "1"]) == 2
    assert "has another predictor" in capsys.readouterr().err
    assert Path(out).read_text() == before


@pytest.mark.slow
def test_a_target_out_of_reach_is_said(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model", model, *SMALL, "--out", str(tmp_path / "far.json")]
    assert command.main([*argv, "--target-ratio", "4.0"]) == 0
    assert "does not reach" not in capsys.readouterr().out
    assert command.main([*argv, "--target-kl", "1e-12"]) == 0
    assert "does not reach KL 1e-12: it is the nearest that was found" in capsys.readouterr().out


@pytest.mark.slow
def test_without_pruning_every_token_is_kept(model: str, tmp_path: Path) -> None:
    out = tmp_path / "kept.json"
    kind = ("--page-size", "128", "--keep-all", "--significance", "attention")
    argv = ["--model", model, *SMALL, *kind, "--target-ratio", "2.5"]
    assert command.main([*argv, "--out", str(out)]) == 0
    low = load_profile(str(out)).config.alphas.low
    assert isinstance(low, tuple)
    assert all(not alpha for layer in low for alpha in layer)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--tiers", "k8v4,k4v8"], "--leankv-tiers"),
        (["--text", "no/such/file"], "--text no/such/file cannot be read"),
        (["--target-kl", "0.01", "--name", "a;b"], "--name must be a plain word"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", ""], "The model's name is empty"),
        *((["--target-kl", text], "--target-kl is a number of nats above 0") for text in ("nan", "inf", "-1", "0")),
        *((["--target-ratio", text], "--target-ratio is a number of") for text in ("nan", "inf", "-1", "0", "0.5")),
        *(
            ([flag, text], f"{flag} is a number of windows from 1 to")
            for flag in ("--windows", "--measured")
            for text in ("0", "-1", str(10**30))
        ),
        (["--seed", "-1"], "--seed is a whole number from 0"),
        (["--seed", str(10**30)], "--seed is a whole number from 0"),
        (["--near-pages", "-1"], "--leankv-near-pages"),
        (["--keep-first", str(10**30)], "--leankv-keep-first"),
        (["--tiers", ""], "--leankv-tiers"),
        (["--target-kl", "0.01", "--name", ""], "--name must be a plain word"),
        (["--text", ""], "--text  cannot be read"),
        (["--text", "/"], "--text / cannot be read"),
        (["--out", ""], "--out takes the file to write"),
        (["--out", "/"], "--out takes the file to write"),
        (["--out", "/no/such/folder/profile.json"], "--out /no/such/folder/profile.json cannot be written"),
        (["--out", "/proc/profile.json"], "--out /proc/profile.json cannot be written"),
        (["--out", "/dev/null"], "--out takes the file to write"),
        (["--device", ""], "--device takes"),
        (["--device", "meta"], "--device meta"),
        (["--device", "cuda:99999999999999999999"], "--device"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_at_once(
    argv: list[str], says: str, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "calibrate", lambda *_: pytest.fail("the long work began"))
    assert command.main(["--model", model, *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert is_one_sentence(error.strip())
    assert says in error


def test_what_is_there_is_left_as_it_is_by_a_refusal(model: str, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    argv = ["--model", model, "--out", str(out), "--text", str(tmp_path / "absent")]
    assert command.main(argv) == 2
    assert not out.exists()
    out.write_text("kept")
    assert command.main(argv) == 2
    assert out.read_text() == "kept"


def test_a_place_where_nothing_can_be_kept_is_refused_at_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "calibrate", lambda *_: pytest.fail("the long work began"))
    monkeypatch.setattr(command, "home", lambda: Path("/proc/nowhere"))
    assert command.main(["--model", model, "--out", str(tmp_path / "mine.json")]) == 2
    assert "name another in LEANKV_HOME" in capsys.readouterr().err


def test_a_model_without_a_tokenizer_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    for tokenizer, said in (("{}", "its tokenizer cannot be loaded"), (None, "holds no tokenizer")):
        for file in folder.glob("tokenizer*"):
            file.unlink()
        if tokenizer:
            (folder / "tokenizer.json").write_text(tokenizer)
        assert command.main(["--model", str(folder), "--out", str(tmp_path / "mine.json")]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert is_one_sentence(error.strip())
