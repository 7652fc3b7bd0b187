"""CUDA C++ to cubins within this process by NVRTC, the compiler that PyTorch's wheels for CUDA bring; it needs no GPU.

NVRTC has no headers of a host, so the few that our sources include are given to it from here.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path

LIBRARY, BUILTINS = "libnvrtc.so.13", "libnvrtc-builtins.so.13*"
NVRTC_ENV = "LEANKV_NVRTC"
"""In the environment: the library's file."""
HEADERS = {
    "cstdint": "#pragma once\n"
    "typedef signed char int8_t; typedef unsigned char uint8_t;\n"
    "typedef short int16_t; typedef unsigned short uint16_t;\n"
    "typedef int int32_t; typedef unsigned int uint32_t;\n"
    "typedef long int64_t; typedef unsigned long uint64_t;\n"
}
"""Headers of the host by name: as much of them as the sources use, and with the types that g++ has on Linux."""

_handle, _int, _text, _texts = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p)
_handle_out, _size_out = ctypes.POINTER(_handle), ctypes.POINTER(ctypes.c_size_t)
FUNCTIONS: dict[str, tuple[object, ...]] = {
    "nvrtcCreateProgram": (_handle_out, _text, _text, _int, _texts, _texts),
    "nvrtcCompileProgram": (_handle, _int, _texts),
    "nvrtcGetCUBINSize": (_handle, _size_out),
    "nvrtcGetCUBIN": (_handle, _text),
    "nvrtcGetPTXSize": (_handle, _size_out),
    "nvrtcGetPTX": (_handle, _text),
    "nvrtcGetProgramLogSize": (_handle, _size_out),
    "nvrtcGetProgramLog": (_handle, _text),
    "nvrtcDestroyProgram": (_handle_out,),
}
"""What is called, with the types of its arguments as nvrtc.h has them; all return an nvrtcResult, an int."""


class NvrtcError(ValueError):
    """NVRTC refused; one line, the first error of its log where it has one."""


def toolkits() -> list[Path]:
    """Where parts of a CUDA toolkit may lie: of PyPI's packages for CUDA 13, then CUDA_HOME and CUDA_PATH."""
    package = importlib.util.find_spec("nvidia")
    homes = [Path(folder) / "cu13" for folder in (package.submodule_search_locations or [] if package else [])]
    return homes + [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]


@cache
def find_nvrtc() -> ctypes.CDLL | None:
    """NVRTC: what ``LEANKV_NVRTC`` names, of PyPI's packages, of CUDA_HOME, in torch's folder, or on the path."""
    for file in _candidates():
        try:
            # It asks for this one by name only, and finds it where it is loaded already.
            for builtins in sorted(Path(file).parent.glob(BUILTINS)) if os.sep in file else ():
                ctypes.CDLL(str(builtins))
            return typed(ctypes.CDLL(file))
        except (OSError, AttributeError):  # not there, or not NVRTC
            continue
    return None


def _candidates() -> Iterator[str]:
    if named := os.environ.get(NVRTC_ENV):
        yield named
        return
    torch = importlib.util.find_spec("torch")
    folders = [home / name for home in toolkits() for name in ("lib", "lib64")]
    folders += [Path(folder) / "lib" for folder in (torch.submodule_search_locations or [] if torch else [])]
    for folder in folders:
        # In torch's folder its name may have a hash.
        yield from map(str, [*folder.glob(LIBRARY), *folder.glob("libnvrtc-*.so.13")])
    yield LIBRARY


def typed(library: ctypes.CDLL) -> ctypes.CDLL:
    """A loaded NVRTC whose functions know their types."""
    for name, types in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = types, _int
    library.nvrtcGetErrorString.argtypes, library.nvrtcGetErrorString.restype = (_int,), _text
    return library


def compile_source(library: ctypes.CDLL, source: str, options: Sequence[str], ptx: bool = False) -> tuple[bytes, str]:
    """The cubin of a source, or its PTX, and NVRTC's log.

    Args:
        library: of :func:`find_nvrtc`.
        source: may include ``HEADERS`` and what the options give folders for.
        options: as NVRTC spells them.
        ptx: whether the architecture among the options is a virtual one, which has no cubin.

    Raises:
        NvrtcError: where it does not compile.
    """
    program = _handle()
    names, texts = _strings(HEADERS), _strings(HEADERS.values())
    made = library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"source.cu", len(HEADERS), texts, names)
    _check(library, "nvrtcCreateProgram", made)
    try:
        code = library.nvrtcCompileProgram(program, len(options), _strings(options))
        log = _read(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if error := next((line.strip() for line in log.splitlines() if "error" in line), "") if code else "":
            raise NvrtcError(error)
        _check(library, "nvrtcCompileProgram", code)
        return _read(library, program, "PTX").rstrip(b"\0") if ptx else _read(library, program, "CUBIN"), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _strings(texts: Collection[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (_text * len(texts))(*(text.encode() for text in texts))


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, f"nvrtcGet{what}Size", getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    out = ctypes.create_string_buffer(size.value)
    _check(library, f"nvrtcGet{what}", getattr(library, f"nvrtcGet{what}")(program, out))
    return out.raw


def _check(library: ctypes.CDLL, name: str, code: int) -> None:
    if code:
        raise NvrtcError(f"{name} failed with {code}, {(library.nvrtcGetErrorString(code) or b'unknown').decode()}")
