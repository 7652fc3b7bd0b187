"""Target: ``import sgl_kernel`` and ``import torchvision`` inside sglang 0.5.23 on a machine without an accelerator.

Reason: neither package has a CPU build, yet the text path imports both at module level (it calls neither). A finder
placed last serves placeholders, so an installed package always wins; calling a placeholder's function raises.
"""

from __future__ import annotations

import enum
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_PACKAGES = ("sgl_kernel", "torchvision")


class InterpolationMode(enum.Enum):
    """The one name of ``torchvision.transforms`` that sglang reads at import."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


class _Missing:
    """Stands for any name of a placeholder: may be imported, looked into and compared, but not called."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self._where}.{name}")

    def __call__(self, *_args: Any, **_kwargs: Any) -> Any:
        package = self._where.split(".")[0]
        raise NotImplementedError(f"{self._where} needs the package {package}, which has no CPU build")


class _Placeholder(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return InterpolationMode if name == "InterpolationMode" else _Missing(f"{self.__name__}.{name}")


class _PlaceholderFinder(MetaPathFinder, Loader):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Claim the placeholder packages and everything below them."""
        if fullname.split(".")[0] in _PACKAGES:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make an empty stand-in."""
        return _Placeholder(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def install() -> None:
    """Serve the placeholders. Idempotent; must run before sglang imports the packages."""
    # transformers asks find_spec and caches the answer: let it record that there is no torchvision.
    from transformers.utils import is_torchvision_available

    is_torchvision_available()
    if not any(isinstance(f, _PlaceholderFinder) for f in sys.meta_path):
        sys.meta_path.append(_PlaceholderFinder())


def problem() -> str | None:
    """A sentence if the placeholders are not served, else None."""
    for package in _PACKAGES:
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            return f"the placeholder for {package} is not served"
    return None
