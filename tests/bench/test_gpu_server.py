"""The check of the server for a GPU machine (bench/gpu/server): its steps on a CPU, and its parts."""

from __future__ import annotations

import argparse
import json
import tarfile
import time
import zipfile
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import Any

import pytest

from bench.gpu.server.archive import Pack, part_path, write_pack
from bench.gpu.server.check import check
from bench.gpu.server.fleet import Fleet
from bench.gpu.server.models import find_model
from bench.gpu.server.options import add_options, forward
from bench.gpu.server.pack import KERNEL, LACKING, ROOT, SITE, requirements, strip
from bench.gpu.server.run import Run
from bench.gpu.server.setup import SetupError, link_checkout, packed_models, set_up
from bench.gpu.server.sizes import GPU, write_shape
from bench.gpu.server.steps import RESULTS
from bench.gpu.server.verdict import verdicts
from leankv_sglang.models.shape import ModelShape, read_shape
from tests.e2e.forked import Zygote
from tests.tiny_models import tiny_folder


def options(*words: str) -> argparse.Namespace:
    """Those of a run."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    parser.add_argument("--begin", type=float)
    return parser.parse_args(words)


@pytest.mark.e2e
def test_every_step_runs_on_a_cpu(tmp_path: Path, zygote: Zygote, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_folder(tmp_path / "model", 2)
    words = ["--cpu", "--model", str(model), "--from", str(tmp_path), "--out", str(tmp_path / "out")]
    check(options(*words), on_gpu=False, start=zygote.start)
    found = json.loads((tmp_path / "out" / "server.json").read_text())
    assert {row["step"] for row in found["steps"] if row["why"]} == {"answers"}, capsys.readouterr().out
    # Nothing of a GPU is made up on a CPU.
    assert found["gaps"] == {"lean": None, "stock": None}
    assert found["memory"]["start"] == {"gpu_mib": None, "by_server_mib": {"lean": None, "stock": None}}
    assert {row["answer"] for row in found["verdicts"]} == {"not measured"}
    assert [row["compared"] for row in found["hit_miss"]["lean"]] == ["hit alone", "miss in a batch", "hit in a batch"]
    for row in found["hit_miss"]["lean"]:
        assert row["bit_equal"] == row["n"] == 2
    assert [row["cached_tokens"] > 0 for row in found["hit_miss"]["lean"]] == [True, False, True]
    for step in ("speed", "llama_speed"):
        assert {row["system"] for row in found[step]} == {"lean", "stock"}
    for step in ("chat_tight", "chat_roomy", "llama_chat_tight"):
        ours, stock = found[step]
        assert (ours["system"], stock["system"]) == ("lean", "stock")
        assert ours["hit_rate"] > 0
    with tarfile.open(tmp_path / "out" / "logs.tar.gz") as tar:
        assert {"lean.log", "stock.log", "llama-lean.log", "llama-stock.log"} <= set(tar.getnames())


def test_a_pack_is_put_together_again_and_what_is_missing_is_known(tmp_path: Path) -> None:
    first, second = tmp_path / SITE, tmp_path / "SmolLM2-135M-Instruct.00.whl"
    first.write_bytes(bytes(range(200)))
    second.write_bytes(b"weights" * 50)
    folder = tmp_path / "pack"
    parts = write_pack([first, second], folder, {"python": "3.12"}, part_bytes=128)
    assert [part.stat().st_size for part in parts] == [128, 128, 128, 128, 38]
    pack = Pack(folder)
    assert [pack.missing(member) for member in pack.members] == [[], []]
    assert list(packed_models(folder)) == ["SmolLM2-135M-Instruct"]
    for member, source in zip(pack.members, (first, second), strict=True):
        pack.extract(member, tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == source.read_bytes()
    part_path(folder, 3).unlink()
    assert [pack.missing(member) for member in pack.members] == [[], [3]]
    part_path(folder, 1).write_bytes(bytes(128))
    with pytest.raises(ValueError, match=r"site\.tar\.xz is not what was packed"):
        pack.extract(pack.members[0], tmp_path / "again")


def test_a_model_whose_parts_are_missing_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEANKV_HOME", str(tmp_path / "home"))
    name = "SmolLM2-135M-Instruct"
    assert find_model(name, tmp_path) == (None, "not in the pack")
    wheel = tmp_path / f"{name}.00.whl"
    wheel.write_bytes(b"weights" * 50)
    write_pack([wheel], tmp_path / "pack", {"python": "3.12"}, part_bytes=128)
    part_path(tmp_path / "pack", 1).unlink()
    assert find_model(name, tmp_path / "pack") == (None, "part 01 of the pack is not here")


def test_everything_packed_is_pinned_and_what_no_text_model_needs_stays_behind(tmp_path: Path) -> None:
    pins = requirements((ROOT / "requirements-cpu.lock").read_text())
    assert {pin.split("==")[0] for pin in pins} == {*LACKING, KERNEL.split("==")[0]}
    wheel = tmp_path / "sgl.whl"
    kept = ("sglang/launch_server.py", "sgl_kernel/sm90/common_ops.abi3.so", "x-1.data/purelib/x/y.py")
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in (*kept, "sglang/multimodal_gen/a.py", "sgl_kernel/sm100/common_ops.abi3.so"):
            archive.writestr(member, "")
    strip([wheel], tmp_path / "site")
    files = {str(file.relative_to(tmp_path / "site")) for file in (tmp_path / "site").rglob("*") if file.is_file()}
    assert files == {*kept[:2], "x/y.py"}


def test_the_checkout_is_found_like_an_installed_package(tmp_path: Path) -> None:
    link_checkout(tmp_path)
    link_checkout(tmp_path)
    (linked,) = [one for one in distributions(path=[str(tmp_path)]) if one.name == "leankv-sglang"]
    installed = distribution("leankv-sglang")
    plugins = "sglang.srt"
    wanted = {(p.group, p.name, p.value) for p in installed.entry_points if p.group.startswith(plugins)}
    assert {(p.group, p.name, p.value) for p in linked.entry_points} == wanted
    assert (tmp_path / "leankv_kernels" / "layout" / "__init__.py").exists()


def test_what_is_installed_is_used_and_what_is_not_asks_for_the_pack(tmp_path: Path) -> None:
    done = set_up(tmp_path / "nowhere", tmp_path / "site", lambda _: "1.0")
    assert done == {"sglang": "1.0", "from_pack": False, "from_checkout": False}
    assert not list((tmp_path / "site").iterdir())
    with pytest.raises(SetupError, match="--pack makes one"):
        set_up(tmp_path / "nowhere", tmp_path / "site", lambda _: None)
    write_pack([], tmp_path / "pack", {"python": "2.7"})
    with pytest.raises(SetupError, match=r"for Python 2\.7"):
        set_up(tmp_path / "pack", tmp_path / "site", lambda _: None)


def test_options_are_handed_on_as_they_were() -> None:
    args = options("--cpu", "--seconds", "30", "--model", "/m", "--from", "/p", "--out", "/o", "--set-up")
    assert vars(options(*forward(args))) == vars(args)


def test_a_step_that_fails_or_takes_too_long_is_noted_and_the_next_begun(tmp_path: Path) -> None:
    run = Run(tmp_path, Fleet(tmp_path / "work"), time.time(), 12.0, {})

    def fails(_: object) -> None:
        raise RuntimeError("no such thing")

    assert run.step("good", 9, lambda clock: {"left": clock.left() > 8})
    assert not run.step("bad", 9, fails)
    assert not run.step("alone", 9, fails, needs=("lean",))
    assert not run.step("left out", 9, fails, wants="made-up weights")
    run.seconds = 9.0
    time.sleep(1.1)
    assert not run.step("late", 9, fails)
    found = json.loads((tmp_path / "server.json").read_text())
    assert found["good"] == {"left": True}
    why = [row["why"] for row in found["steps"]]
    assert why == [None, "RuntimeError: no such thing", "no server lean", "made-up weights", "no time left"]


def test_a_step_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu.server.run.LEAST", 0.1)
    monkeypatch.setattr("bench.gpu.server.run.GRACE", 0.1)
    monkeypatch.setattr("bench.gpu.server.run.END", 0.1)
    run = Run(tmp_path, Fleet(tmp_path / "work"), time.time(), 60.0, {})
    assert not run.step("hangs", 0.2, lambda _: time.sleep(3))
    assert run.found["steps"][0]["why"] == "took longer than 0.2 s"
    assert "hangs" not in run.found


def measured() -> dict[str, Any]:
    """What a run might find where all is as it should be."""
    ratio = {"median": 0.9, "low": 0.8, "high": 1.1}
    rows = [
        {"system": "lean", "batch": batch, "context": context, "step_ms": ratio, "step_ms_of_stock": ratio}
        for batch, context in GPU.shapes
    ]
    same = [
        {
            "compared": what,
            "n": 8,
            "same_text": 8,
            "bit_equal": 8,
            "max_drift": 0.0,
            "cached_tokens": int("hit" in what),
        }
        for what in ("hit alone", "miss in a batch", "hit in a batch")
    ]
    chat = [{"system": name, "tok_per_s": speed, "hit_rate": 0.5} for name, speed in (("lean", 4.0), ("stock", 1.0))]
    return {
        "sizes": "gpu",
        "start": {"lean": {"ready_s": 40.0, "why": None}},
        "graph_steps": {"lean": True},
        "answers": {name: {"right": 3, "of": 3} for name in ("lean", "qwen")},
        "hit_miss": {"lean": same, "deterministic": same},
        **dict.fromkeys(("speed", "llama_speed"), rows),
        **dict.fromkeys(("chat_tight", "chat_roomy", "llama_chat_tight"), chat),
        "gaps": {"lean": {"longest_us": 40.0, "over_100us": 0}, "stock": None},
    }


def answered(found: dict[str, Any]) -> dict[str, str]:
    """Verdicts by line."""
    return {row["line"]: row["answer"] for row in verdicts(found)}


def test_verdicts_follow_what_was_measured_and_nothing_else() -> None:
    assert set(answered(measured()).values()) == {"yes"}
    for found in ({"sizes": "gpu"}, {"sizes": "gpu", **dict.fromkeys(RESULTS)}, measured() | {"sizes": "cpu"}):
        assert set(answered(found).values()) == {"not measured"}


@pytest.mark.parametrize(
    ("change", "line", "answer"),
    [
        ({"start": {"lean": {"ready_s": None, "why": "ended"}}}, "the server starts", "no"),
        ({"graph_steps": {"lean": False}}, "the server starts", "no"),
        ({"graph_steps": {"lean": None}}, "the server starts", "not measured"),
        ({"answers": {"lean": {"right": 2, "of": 3}}}, "SmolLM2 answers", "no"),
        ({"answers": {"lean": {"right": 2, "of": 3}}}, "Qwen2.5-0.5B answers", "not measured"),
        ({"gaps": {"lean": {"longest_us": 140.0, "over_100us": 1}}}, "no host gap", "no"),
    ],
)
def test_a_line_that_does_not_hold_says_so(change: dict[str, Any], line: str, answer: str) -> None:
    (found,) = [said for name, said in answered(measured() | change).items() if name.startswith(line)]
    assert found == answer


def test_lines_need_all_that_they_name() -> None:
    found = measured()
    found["speed"] = [row for row in found["speed"] if row["batch"] != 64]
    found["hit_miss"]["lean"] = [row | {"cached_tokens": 0} for row in found["hit_miss"]["lean"]]
    found["hit_miss"]["deterministic"] = found["hit_miss"]["deterministic"][:1]
    said = answered(found)
    assert said["decode at 1 to 64 x 2k no slower than stock, SmolLM2"] == "not measured"
    assert said["decode from 8 x 6k on faster than stock, SmolLM2"] == "yes"
    assert said["a hit equals its miss in text"] == "no"
    assert said["a hit equals its miss to the bit, deterministic"] == "not measured"


def test_the_model_without_weights_has_the_shape_of_llama(tmp_path: Path) -> None:
    shape = read_shape(write_shape(tmp_path, GPU.llama))
    assert shape == ModelShape(32, 32, 8, 128)
    assert shape.token_bytes == 131072
