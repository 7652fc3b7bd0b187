"""What of a machine with an NVIDIA GPU is refused at the start: its GPUs, its driver, the packages installed."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version

from leankv_patches import SGLANG_VERSION
from leankv_sglang.errors import LeanKVError

LEAST_CAPABILITY = (8, 0)
SKIP_ENV = "SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK"
"""SGLang's own variable for who knows better which releases go together."""
NEEDED = ("torch", "sglang-kernel")
"""Packages whose compiled code has to fit sglang and each other. (FlashInfer may be missing: torch samples then.)"""
INSTALL = "pip install 'leankv-sglang[cuda]'"


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch sees."""

    name: str
    capability: tuple[int, int]


@dataclass(frozen=True)
class Machine:
    """What the check looks at."""

    torch_cuda: tuple[int, int] | None
    """The CUDA release that torch was built for, None for a torch without."""
    driver_cuda: tuple[int, int] | None
    """The newest CUDA release that the NVIDIA driver runs, None without a driver."""
    accelerator: str | None
    """The kind of accelerator that torch sees, such as ``cuda``."""
    gpus: tuple[Gpu, ...]
    installed: dict[str, str]
    """Versions of sglang and the needed packages; what is missing is not there."""
    wanted: dict[str, str]
    """Specifiers of the needed packages in sglang's own metadata."""


def _release(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def _driver_cuda() -> tuple[int, int] | None:
    found = ctypes.c_int()
    try:
        code = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(found))
    except (OSError, AttributeError):
        return None
    return None if code else (found.value // 1000, found.value % 1000 // 10)


def wanted_packages(names: tuple[str, ...] = NEEDED) -> dict[str, str]:
    """What the installed sglang's metadata asks for, by name; nothing where it is not installed."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        found = [Requirement(line) for line in requires("sglang") or []]
    except PackageNotFoundError:
        return {}
    asked: dict[str, str] = {canonicalize_name(one.name): str(one.specifier) for one in found if one.marker is None}
    return {name: asked[name] for name in names if name in asked}


def this_machine() -> Machine:
    """Look at the machine; imports torch, not sglang."""
    import torch

    installed = {}
    for name in ("sglang", *NEEDED):
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return Machine(
        torch_cuda=_release(torch.version.cuda) if torch.version.cuda else None,
        driver_cuda=_driver_cuda(),
        accelerator=kind.type if kind else None,
        gpus=tuple(
            Gpu(torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i))
            for i in range(torch.cuda.device_count())
        ),
        installed=installed,
        wanted=wanted_packages(),
    )


def check_machine(machine: Machine | None = None) -> None:
    """Check the machine, by default this one, before sglang is imported. One without an accelerator is all right; one
    whose accelerator torch was not built for is told so.

    Raises:
        LeanKVError: one sentence saying what is wrong with it and what to do.
    """
    machine = machine or this_machine()
    if why := _problem(machine):
        raise LeanKVError(f"LeanKV cannot start: {why}.")
    if machine.accelerator is None and machine.torch_cuda is None and machine.driver_cuda is not None:
        print(
            "LeanKV serves from the CPU although this machine has an NVIDIA driver: torch is built without CUDA. For "
            f"the GPU: {INSTALL}, in an environment of its own.",
            file=sys.stderr,
        )


def _problem(machine: Machine) -> str | None:
    if "sglang" not in machine.installed:
        return f"sglang {SGLANG_VERSION} is not installed; make setup on a CPU, {INSTALL} on a GPU"
    if machine.accelerator is None:
        return _driver_problem(machine)
    if machine.accelerator != "cuda" or machine.torch_cuda is None:
        kind = "AMD GPU" if machine.accelerator == "cuda" else f"accelerator ({machine.accelerator})"
        return f"this machine's {kind} is not supported; use an NVIDIA GPU, or a torch for CPUs"
    return _driver_problem(machine) or _gpu_problem(machine) or _package_problem(machine)


def _driver_problem(machine: Machine) -> str | None:
    """Torch sees no GPU through a driver that is too old, and would quietly serve from the CPU."""
    if machine.torch_cuda is None or machine.driver_cuda is None:
        return None
    # Within a major release an older driver runs newer code.
    if machine.driver_cuda[0] >= machine.torch_cuda[0]:
        return None
    driver, built = (".".join(map(str, release)) for release in (machine.driver_cuda, machine.torch_cuda))
    return f"the NVIDIA driver runs CUDA {driver} and torch is built for {built}; update the driver"


def _gpu_problem(machine: Machine) -> str | None:
    for gpu in machine.gpus:
        if gpu.capability < LEAST_CAPABILITY:
            least, found = (".".join(map(str, one)) for one in (LEAST_CAPABILITY, gpu.capability))
            return (
                f"{gpu.name} has compute capability {found} and {least} (Ampere) or higher is needed; "
                "name other GPUs in CUDA_VISIBLE_DEVICES"
            )
    return None


def _package_problem(machine: Machine) -> str | None:
    from packaging.specifiers import SpecifierSet

    for name, wanted in machine.wanted.items():
        found = machine.installed.get(name)
        if found is None:
            return f"sglang {SGLANG_VERSION} needs {name} on a GPU and it is not installed; {INSTALL}"
        trusted = os.environ.get(SKIP_ENV, "").lower() in ("1", "true", "yes")
        if not trusted and not SpecifierSet(wanted).contains(found, prereleases=True):
            return (
                f"sglang {SGLANG_VERSION} needs {name}{wanted} on a GPU and {found} is installed; {INSTALL}, or set "
                f"{SKIP_ENV}=1 to try"
            )
    return None
