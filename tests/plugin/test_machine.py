"""Machines that are refused at the start, each with one sentence; stubs stand for the machines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from leankv_sglang import environment, launch_server
from leankv_sglang.errors import LeanKVError
from leankv_sglang.plugin import machine
from leankv_sglang.plugin.faults import REPORT_ENV
from leankv_sglang.plugin.machine import SKIP_ENV, Gpu, Machine, check_machine, this_machine
from leankv_sglang.processes import free_port
from leankv_sglang.server import args, early_checks

H100 = Machine(
    torch_cuda=(13, 0),
    driver_cuda=(13, 0),
    accelerator="cuda",
    gpus=(Gpu("NVIDIA H100", (9, 0)),),
    installed={"sglang": "0.5.23", "torch": "2.14.1+cu130", "sglang-kernel": "0.4.10"},
    wanted={"torch": "==2.14.1", "sglang-kernel": "==0.4.10"},
)
CPU = replace(H100, torch_cuda=None, driver_cuda=None, accelerator=None, gpus=(), installed={"sglang": "0.5.23"})


@pytest.fixture(autouse=True)
def checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have switched the check of versions off."""
    monkeypatch.delenv(SKIP_ENV, raising=False)


ACCEPTED: dict[str, Machine] = {
    "an H100": H100,
    "an A100, exactly 8.0": replace(H100, gpus=(Gpu("NVIDIA A100", (8, 0)),)),
    "Blackwell": replace(H100, gpus=(Gpu("NVIDIA B200", (10, 0)),)),
    "a newer driver": replace(H100, driver_cuda=(14, 2)),
    "an older driver of the same major release": replace(H100, torch_cuda=(13, 2)),
    "no GPU": CPU,
    "no GPU and torch for one": replace(CPU, torch_cuda=(13, 0)),
    "a hidden GPU": replace(H100, accelerator=None, gpus=()),
}
REFUSED: dict[str, tuple[Machine, str]] = {
    "Volta": (
        replace(H100, gpus=(H100.gpus[0], Gpu("Tesla V100", (7, 0)))),
        "Tesla V100 has compute capability 7.0 and 8.0 (Ampere) or higher is needed",
    ),
    "an old driver": (replace(H100, driver_cuda=(12, 8)), "driver runs CUDA 12.8 and torch is built for 13.0"),
    "a driver too old for torch to see the GPU": (
        replace(H100, driver_cuda=(12, 8), accelerator=None, gpus=()),
        "update the driver",
    ),
    "an AMD GPU": (replace(H100, torch_cuda=None, driver_cuda=None), "this machine's AMD GPU is not supported"),
    "an Intel GPU": (replace(H100, torch_cuda=None, accelerator="xpu"), "accelerator (xpu) is not supported"),
    "no sglang": (replace(CPU, installed={}), "sglang 0.5.23 is not installed"),
    "another torch": (
        replace(H100, installed=H100.installed | {"torch": "2.11.0+cu130"}),
        "needs torch==2.14.1 on a GPU and 2.11.0+cu130 is installed",
    ),
    "another sglang-kernel": (
        replace(H100, installed=H100.installed | {"sglang-kernel": "0.4.6"}),
        "needs sglang-kernel==0.4.10 on a GPU and 0.4.6 is installed",
    ),
    "no sglang-kernel": (
        replace(H100, installed={"sglang": "0.5.23", "torch": "2.14.1"}),
        "needs sglang-kernel on a GPU and it is not installed",
    ),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_machines_that_can_serve(name: str) -> None:
    check_machine(ACCEPTED[name])


def test_a_gpu_that_torch_was_not_built_for_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    check_machine(CPU)
    assert not capsys.readouterr().err
    check_machine(replace(CPU, driver_cuda=(13, 0)))
    assert "serves from the CPU although this machine has an NVIDIA driver" in capsys.readouterr().err


@pytest.mark.parametrize("name", REFUSED)
def test_a_machine_is_refused_with_its_own_sentence(name: str) -> None:
    refused, says = REFUSED[name]
    with pytest.raises(LeanKVError) as refusal:
        check_machine(refused)
    text = str(refusal.value)
    assert text.startswith("LeanKV cannot start: ")
    assert says in text
    assert text.endswith(".")
    assert "\n" not in text


def test_who_knows_better_may_have_other_versions_but_not_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the variable with which SGLang itself is told so."""
    monkeypatch.setenv(SKIP_ENV, "1")
    check_machine(REFUSED["another torch"][0])
    check_machine(REFUSED["another sglang-kernel"][0])
    with pytest.raises(LeanKVError, match="sglang-kernel on a GPU"):
        check_machine(REFUSED["no sglang-kernel"][0])


def test_this_machine_is_described() -> None:
    """What sglang's metadata asks for, without sglang."""
    found = this_machine()
    assert {"torch", "sglang"} <= set(found.installed)
    assert found.wanted["torch"].startswith("==")
    assert found.wanted["sglang-kernel"].startswith("==")
    assert (found.accelerator is None) == (not found.gpus)


def test_the_launcher_ends_with_the_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda: REFUSED["Volta"][0])
    monkeypatch.setattr(args, "with_model_path", lambda rest: (rest, str(tmp_path)))
    monkeypatch.setattr(early_checks, "check_model", lambda rest, model, offloads: None)
    monkeypatch.setattr(environment, "prepare_environment", lambda config: pytest.fail("went on"))
    monkeypatch.setenv(environment.DRAIN_ENV, "1")
    monkeypatch.setenv(REPORT_ENV, "")
    monkeypatch.setattr("sys.argv", ["launch_server", "--leankv-profile", "none", "--port", str(free_port())])
    assert launch_server.main() == 2
    assert "error: LeanKV cannot start: Tesla V100" in capsys.readouterr().err
