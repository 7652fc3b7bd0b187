"""NVRTC, which compiles units where there is no nvcc: the real one where it is found, else one that is made up."""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from leankv_kernels.cuda import compiler, driver, nvrtc
from leankv_kernels.cuda.compiler import CompileError, compile_unit
from leankv_kernels.cuda.facts import facts_of
from leankv_kernels.cuda.open import STATE_THREADS, StatesArgs
from leankv_kernels.cuda.unit import Unit

STATES = Unit("states")
needs_nvrtc = pytest.mark.skipif(
    nvrtc.find_nvrtc() is None, reason=f"needs NVRTC: pip install nvidia-cuda-nvrtc or set {nvrtc.NVRTC_ENV}"
)


class Function:
    """A function of a library that is made up, which ctypes may give types to."""

    def __init__(self, answer: object) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.answer = answer

    def __call__(self, *args: object) -> object:
        self.calls.append(args)
        return self.answer(*args) if callable(self.answer) else self.answer


class Library:
    """An NVRTC that says what it is told to: a code, a log, an image."""

    _name = "libfake.so"

    def __init__(self, code: int = 0, log: bytes = b"\0", image: bytes = b"") -> None:
        for name in nvrtc.FUNCTIONS:
            setattr(self, name, Function(0))
        self.nvrtcCompileProgram = Function(code)
        self.nvrtcGetErrorString = Function(b"NVRTC_ERROR_MADE_UP")
        for what, data in (("ProgramLog", log), ("CUBIN", image), ("PTX", image)):
            setattr(self, f"nvrtcGet{what}Size", Function(partial(self._size, data)))
            setattr(self, f"nvrtcGet{what}", Function(partial(self._data, data)))

    @staticmethod
    def _size(data: bytes, program: ctypes.c_void_p, out: Any) -> int:
        out._obj.value = len(data)
        return 0

    @staticmethod
    def _data(data: bytes, program: ctypes.c_void_p, out: Any) -> int:
        out.raw = data
        return 0


def found(monkeypatch: pytest.MonkeyPatch, nvcc: str | None, library: object) -> None:
    monkeypatch.setattr(compiler, "find_nvcc", lambda: nvcc)
    monkeypatch.setattr(compiler, "find_nvrtc", lambda: library)


@needs_nvrtc
@pytest.mark.parametrize(("capability", "ptx"), [("80", False), ("90a", False), ("80", True)])
def test_a_unit_compiles_without_nvcc_and_without_headers(
    monkeypatch: pytest.MonkeyPatch, capability: str, ptx: bool
) -> None:
    found(monkeypatch, None, nvrtc.find_nvrtc())
    image, reports = compile_unit(STATES, capability, ptx)
    assert facts_of(image, "merge_states") == (STATE_THREADS, 0, ctypes.sizeof(StatesArgs))
    assert image.startswith(b"\x7fELF") is not ptx
    if not ptx:
        merge = next(one for one in reports if one.kernel == "merge_states")
        assert merge.spill_bytes == 0
        assert 0 < merge.registers < 64


@needs_nvrtc
def test_what_does_not_compile_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, None, nvrtc.find_nvrtc())
    with pytest.raises(CompileError, match=r"^NVRTC .* of nothing: .*error.*nothing\.cuh.*$"):
        compile_unit(Unit("nothing"), "90a")


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (b"1 warning\nunit.cu(3): error: so it is\nunit.cu(4): error: and so\n\0", r"unit\.cu\(3\): error: so it is"),
        (b"\0", "nvrtcCompileProgram failed with 6, NVRTC_ERROR_MADE_UP"),
    ],
)
def test_an_error_is_the_first_line_of_the_log_that_is_one(
    monkeypatch: pytest.MonkeyPatch, log: bytes, said: str
) -> None:
    library = Library(code=6, log=log)
    found(monkeypatch, None, library)
    with pytest.raises(CompileError, match=rf"^NVRTC \(libfake\.so\) does not compile .* of states: {said}$"):
        compile_unit(STATES, "90a")
    assert len(library.nvrtcDestroyProgram.calls) == 1


def test_a_program_that_cannot_be_made_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    library.nvrtcCreateProgram = Function(1)
    found(monkeypatch, None, library)
    with pytest.raises(CompileError, match="nvrtcCreateProgram failed with 1, NVRTC_ERROR_MADE_UP"):
        compile_unit(STATES, "90a")


@pytest.mark.parametrize(("ptx", "target"), [(False, "sm_90a"), (True, "compute_90a")])
def test_the_library_is_told_what_was_meant(monkeypatch: pytest.MonkeyPatch, ptx: bool, target: str) -> None:
    """The source, headers, the options, and the image is all of what it made."""
    log = (
        b"Function properties for k\n0 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads\nUsed 31 registers"
    )
    library = Library(log=log + b"\0", image=b"an image" + b"\0" * ptx)
    found(monkeypatch, None, library)
    image, reports = compile_unit(STATES, "90a", ptx)
    assert image == b"an image"
    assert reports == [compiler.Report("k", 31, 8, 0)]
    _, source, _, count, texts, names = library.nvrtcCreateProgram.calls[0]
    assert source == STATES.text("unit.cu").encode()
    assert (count, list(names)) == (1, [b"cstdint"])
    assert b"uint64_t" in texts[0]
    _, count, options = library.nvrtcCompileProgram.calls[0]
    assert count == len(options)
    assert {f"--gpu-architecture={target}".encode(), b"-DLEANKV_SHARED_BYTES=232448"} <= set(options)


def test_nvcc_is_preferred(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An nvcc that writes what it is into the file that it is asked for, its last argument."""
    nvcc, library = tmp_path / "nvcc", Library(image=b"by NVRTC")
    nvcc.write_text('#!/bin/sh\nfor last; do :; done\nprintf "by nvcc" > "$last"\n')
    nvcc.chmod(0o755)
    found(monkeypatch, str(nvcc), library)
    assert compile_unit(STATES, "90a")[0] == b"by nvcc"
    found(monkeypatch, None, library)
    assert compile_unit(STATES, "90a")[0] == b"by NVRTC"


def test_without_both_the_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, None, None)
    assert not compiler.has_compiler()
    said = (
        r"neither nvcc nor NVRTC .* pip install nvidia-cuda-nvrtc, set LEANKV_NVCC, LEANKV_NVRTC or CUDA_HOME, or use"
    )
    with pytest.raises(CompileError, match=said):
        compile_unit(STATES, "90a")


@pytest.mark.parametrize(("nvcc", "library"), [("nvcc", None), (None, Library()), (None, None)])
def test_a_gpu_can_run_the_kernels_where_there_is_any_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nvcc: str | None, library: Library | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(driver, "SHIPPED", tmp_path)
    found(monkeypatch, nvcc, library)
    assert driver.can_run(torch.device("cuda", 0)) is bool(nvcc or library)


def test_what_it_needs_is_loaded_before_it_from_its_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It does not look there itself, and a file that is no NVRTC is none."""
    file, builtins = tmp_path / nvrtc.LIBRARY, tmp_path / "libnvrtc-builtins.so.13.0"
    builtins.touch()
    monkeypatch.setenv(nvrtc.NVRTC_ENV, str(file))
    for library, expected in ((Library(), True), (object(), False)):
        with mock.patch.object(nvrtc.ctypes, "CDLL", return_value=library) as load:
            assert (nvrtc.find_nvrtc.__wrapped__() is library) is expected
        assert [call.args for call in load.call_args_list] == [(str(builtins),), (str(file),)]


def test_where_it_is_not_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(nvrtc.NVRTC_ENV, str(tmp_path / nvrtc.LIBRARY))
    assert nvrtc.find_nvrtc.__wrapped__() is None
