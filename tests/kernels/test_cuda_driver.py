"""The launcher of CUDA kernels against a driver that writes down what it is asked for, compiled with cuda.h."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
import triton

from leankv_kernels.cuda import driver
from leankv_kernels.cuda.attend import AttendArgs
from leankv_kernels.cuda.compiler import compile_unit, find_nvcc
from leankv_kernels.cuda.emulated import library
from leankv_kernels.cuda.facts import Facts, facts_of
from leankv_kernels.cuda.open import STATE_THREADS, StatesArgs
from leankv_kernels.cuda.shipped import MODELS, TIER_PAIRS, attend_unit
from leankv_kernels.cuda.unit import Unit

DRIVER = r"""
#include <cuda.h>
#include <cstring>
long long seen[16];
int refuse = 0;
char name[64];
extern "C" {
long long* leankv_seen() { return seen; }
void leankv_refuse(int n) { refuse = n; }
const char* leankv_name() { return name; }
CUresult CUDAAPI cuGetErrorString(CUresult error, const char** text) { *text = "so it is"; return CUDA_SUCCESS; }
CUresult CUDAAPI cuModuleLoadData(CUmodule* module, const void* image) {
    *module = (CUmodule)0x7111222233334444;
    return memcmp(image, "\177ELF", 4) ? CUDA_ERROR_INVALID_IMAGE : CUDA_SUCCESS;
}
CUresult CUDAAPI cuModuleGetFunction(CUfunction* function, CUmodule module, const char* asked) {
    strcpy(name, asked); *function = (CUfunction)((long long)module + 1); return CUDA_SUCCESS;
}
CUresult CUDAAPI cuFuncSetAttribute(CUfunction f, CUfunction_attribute what, int value) {
    seen[14] = what == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES && (long long)f == 0x7111222233334445;
    seen[15] = value; return CUDA_SUCCESS;
}
CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** parameters, void** extra) {
    bool overlap = c->numAttrs == 1 && c->attrs->id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION &&
                   c->attrs->value.programmaticStreamSerializationAllowed;
    long long all[] = {(long long)f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
                       c->sharedMemBytes, (long long)c->hStream, *(long long*)parameters[0], extra == nullptr, overlap,
                       sizeof(CUlaunchConfig), sizeof(CUlaunchAttribute)};
    memcpy(seen, all, sizeof(all));
    if (refuse) { int code = refuse; refuse = 0; return (CUresult)code; }
    return CUDA_SUCCESS;
}
}
"""
STREAM, POINTER = 0x6555666677778888, 0x7FFF_1234_5678_9ABC
needs_compilers = pytest.mark.skipif(find_nvcc() is None or shutil.which("g++") is None, reason="needs nvcc and g++")


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[ctypes.CDLL]:
    """The fake driver, on a GPU that torch believes in."""
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    file = tmp_path / "libcuda.so"
    command = ["g++", "-shared", "-fPIC", f"-I{include}", "-x", "c++", "-", "-o", str(file)]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    loaded = ctypes.CDLL(str(file))
    loaded.leankv_seen.restype, loaded.leankv_name.restype = ctypes.POINTER(ctypes.c_longlong), ctypes.c_char_p
    driver._library.cache_clear()
    with (
        mock.patch.object(driver.ctypes, "CDLL", return_value=loaded),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=(9, 0)),
        mock.patch.object(torch.cuda, "current_stream", return_value=SimpleNamespace(cuda_stream=STREAM)),
        mock.patch.object(driver.Driver, "_enter"),
        mock.patch.object(torch.cuda, "device"),
    ):
        yield loaded
    driver._library.cache_clear()


def states() -> StatesArgs:
    return StatesArgs(POINTER, *([0] * 5), 5, 128)


@needs_compilers
def test_the_driver_is_told_what_was_meant(fake: ctypes.CDLL) -> None:
    """Handles and pointers of 64 bits, sizes, the kernel's own threads, and the bytes of the arguments."""
    device = torch.device("cuda", 0)
    driver.Driver(device).launch(Unit("states"), "merge_states", (7, 2, 3), states(), device)
    seen = fake.leankv_seen()
    assert seen[:11] == [0x7111222233334445, 7, 2, 3, STATE_THREADS, 1, 1, 0, STREAM, POINTER, 1]
    assert seen[11:14] == [1, ctypes.sizeof(driver.LaunchConfig), ctypes.sizeof(driver.LaunchAttribute)]
    assert seen[14:16] == [1, 0]
    assert fake.leankv_name() == b"merge_states"


@needs_compilers
def test_a_thread_without_a_context_is_given_one_and_what_else_fails_is_told(fake: ctypes.CDLL) -> None:
    device = torch.device("cuda", 0)
    launcher = driver.Driver(device)
    fake.leankv_refuse(driver._INVALID_CONTEXT)
    launcher.launch(Unit("states"), "merge_states", (1, 1, 1), states(), device)
    fake.leankv_refuse(1)
    with pytest.raises(RuntimeError, match=r"states merge_states, grid \(9, 1, 1\) failed with 1: so it is"):
        launcher.launch(Unit("states"), "merge_states", (9, 1, 1), states(), device)


@needs_compilers
@pytest.mark.parametrize(("capability", "setting"), [((9, 0), "0"), ((8, 9), "1")])
def test_launches_overlap_only_where_the_gpu_can_and_nobody_says_no(
    fake: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], setting: str
) -> None:
    monkeypatch.setenv(driver.OVERLAP_ENV, setting)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cuda", 0)
    driver.Driver(device).launch(Unit("states"), "merge_states", (7, 2, 3), states(), device)
    assert fake.leankv_seen()[11] == 0


@needs_compilers
@pytest.mark.parametrize("ptx", [False, True])
@pytest.mark.slow
def test_facts_are_those_of_the_kernel(ptx: bool) -> None:
    """As the same source says them to the emulator."""
    unit = attend_unit(MODELS[0], TIER_PAIRS[0], 1)
    image, _ = compile_unit(unit, "90a", ptx)
    facts = facts_of(image, "attend_committed")
    assert facts.argument_bytes == ctypes.sizeof(AttendArgs)
    assert facts == Facts(*(ctypes.c_int * 3).in_dll(library(unit), "attend_committed_facts"))
    with pytest.raises(ValueError, match="no kernel nothing"):
        facts_of(image, "nothing")
