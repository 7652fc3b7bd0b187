"""Launches on a GPU by the driver API: cubins shipped, or compiled at first use; no link to torch or cudart."""

from __future__ import annotations

import ctypes
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from leankv_kernels.cuda.attend import attend_shape, check_layout
from leankv_kernels.cuda.compiler import CAPABILITIES, capability_of, compile_unit, has_compiler, shared_bytes_of
from leankv_kernels.cuda.facts import Facts, facts_of
from leankv_kernels.cuda.unit import Unit, cache_folder, check_arguments, digest
from leankv_kernels.layout import RecordLayout

logger = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("cubins")
"""Where ``make kernels-cuda`` puts cubins: a folder for the sources' digest, in it one for every capability."""
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT: this thread has none yet
_handle, _uint = ctypes.c_void_p, ctypes.c_uint
_out = ctypes.POINTER(_handle)
_OVERLAP = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
OVERLAP_ENV = "LEANKV_CUDA_OVERLAP"
"""0 in the environment: a launch begins when the one before it has ended, not earlier."""


class LaunchAttribute(ctypes.Structure):
    """``CUlaunchAttribute`` with a value that is an int."""

    _fields_ = (("id", ctypes.c_int), ("_pad", ctypes.c_int), ("value", ctypes.c_int), ("_rest", ctypes.c_int * 15))


class LaunchConfig(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = (
        *((name, _uint) for name in ("x", "y", "z", "block_x", "block_y", "block_z", "shared_bytes")),
        ("stream", _handle),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("attribute_count", _uint),
    )


FUNCTIONS: dict[str, tuple[object, ...]] = {
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
    "cuModuleLoadData": (_out, ctypes.c_char_p),
    "cuModuleGetFunction": (_out, _handle, ctypes.c_char_p),
    "cuFuncSetAttribute": (_handle, ctypes.c_int, ctypes.c_int),
    "cuLaunchKernelEx": (_handle, _handle, _out, _out),
}
"""What is called of the driver, with the types of its arguments as cuda.h has them; all return a CUresult, an int."""


@cache
def _library() -> ctypes.CDLL:
    try:
        found = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise ValueError(
            f"the cuda kernels need NVIDIA's driver ({error}): install it, or use --leankv-kernels triton"
        ) from error
    for name, types in FUNCTIONS.items():
        function = getattr(found, name)
        function.argtypes, function.restype = types, ctypes.c_int
    return found


def _check(name: str, code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"{name} failed with {code}: {(text.value or b'unknown error').decode()}")


def _call(name: str, *args: object) -> None:
    _check(name, getattr(_library(), name)(*args))


@dataclass(frozen=True)
class _Kernel:
    function: ctypes.c_void_p
    facts: Facts


def image_of(unit: Unit, capability: str | None) -> bytes:
    """A unit's cubin, or for a GPU of another compute capability its PTX: shipped, of the cache, or compiled now.

    Raises:
        CompileError: where it has to be compiled and cannot be.
    """
    folder, suffix = (capability, "cubin") if capability else (CAPABILITIES[0], "ptx")
    name = f"{unit.name}.{suffix}"
    cached = cache_folder("cuda") / folder / name
    for file in (SHIPPED / digest() / folder / name, cached):
        if file.exists():
            return file.read_bytes()
    image, _ = compile_unit(unit, folder, ptx=capability is None)
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as out:
        out.write(image)
    os.replace(out.name, cached)
    return image


class Driver:
    """A launcher on one GPU.

    Args:
        device: of compute capability 8.0 or higher.

    Raises:
        ValueError: without a driver, or for a GPU that the kernels cannot run on.
    """

    def __init__(self, device: torch.device) -> None:
        major, minor = torch.cuda.get_device_capability(device)
        if major < 8:
            raise ValueError(
                f"the cuda kernels need a GPU of compute capability 8.0 or higher, not {major}.{minor}: "
                "use --leankv-kernels triton"
            )
        self.capability = capability_of(major, minor)
        self._index = torch.cuda.current_device() if device.index is None else device.index
        self._kernels: dict[tuple[Unit, str], _Kernel] = {}
        overlap = major >= 9 and os.environ.get(OVERLAP_ENV) != "0"
        self._attributes = (LaunchAttribute * 1)(LaunchAttribute(_OVERLAP, 0, int(overlap)))
        _library()

    def launch(
        self, unit: Unit, kernel: str, grid: Sequence[int], args: ctypes.Structure, device: torch.device
    ) -> None:
        """See :class:`Launcher`. A unit's first launch loads it, which CUDA graphs cannot capture: warm up before."""
        if 0 in grid:
            return
        found = self._kernels.get((unit, kernel)) or self._load(unit, kernel)
        check_arguments(kernel, args, found.facts.argument_bytes)
        stream = torch.cuda.current_stream(device).cuda_stream
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(args))
        threads, shared_bytes = found.facts.threads, found.facts.shared_bytes
        launch = LaunchConfig(*grid, threads, 1, 1, shared_bytes, stream, self._attributes, len(self._attributes))
        start = _library().cuLaunchKernelEx
        code = start(ctypes.addressof(launch), found.function, parameters, None)
        if code == _INVALID_CONTEXT:
            self._enter()
            code = start(ctypes.addressof(launch), found.function, parameters, None)
        _check(f"cuLaunchKernelEx of {unit.name} {kernel}, grid {tuple(grid)}", code)

    def _enter(self) -> None:
        """Make torch's context the current one of this thread, which a call of CUDA's runtime does."""
        with torch.cuda.device(self._index):
            torch.cuda.current_stream().query()

    def _load(self, unit: Unit, kernel: str) -> _Kernel:
        self._enter()
        with torch.cuda.device(self._index):
            image, module, function = image_of(unit, self.capability), ctypes.c_void_p(), ctypes.c_void_p()
            _call("cuModuleLoadData", ctypes.byref(module), image)
            _call("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
            facts = facts_of(image, kernel)
            _call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, facts.shared_bytes)
        found = _Kernel(function, facts)
        self._kernels[unit, kernel] = found
        return found


@cache
def _say_unfit(why: str) -> None:
    logger.warning("LeanKV does without the cuda kernels here: %s", why)


def can_run(device: torch.device, layout: RecordLayout | None = None, group: int | None = None) -> bool:
    """Whether a GPU can run the kernels, and there are cubins for a layout or a compiler to make them; says which of
    layout and query group they do not take."""
    major, minor = torch.cuda.get_device_capability(device)
    if major < 8:
        return False
    name = "attend-*"
    if layout:
        try:
            check_layout(layout, shared_bytes_of(capability_of(major, minor)), group or 1)
        except ValueError as error:
            _say_unfit(str(error))
            return False
        dim, part, _, *rest = attend_shape(layout, group or 1).unit.shape
        name = f"attend-{dim}-{part if group else '*'}-*-{'-'.join(str(int(x)) for x in rest)}"
    if has_compiler():
        return True
    capability = capability_of(major, minor)
    folder, suffix = capability or CAPABILITIES[0], "cubin" if capability else "ptx"
    return any((SHIPPED / digest() / folder).glob(f"{name}.{suffix}"))


@cache
def driver_of(device: torch.device) -> Driver:
    """The launcher of a device."""
    return Driver(device)
