"""The compiled kernels: ``from leankv_kernels.cpu.extension import _cpu`` is the one way to reach them.

torch comes first: the extension needs an OpenMP runtime by the name under which torch has loaded its own, and two of
them in one process would each start threads for every core. ``LEANKV_CPU_MODULE`` names another build of the same
module, such as the one that ``make sanitize`` makes.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import torch  # noqa: F401

NAME = "leankv_kernels._cpu"
MODULE_ENV = "LEANKV_CPU_MODULE"


def _load_from(path: str) -> None:
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[NAME] = module


if os.environ.get(MODULE_ENV) and NAME not in sys.modules:
    _load_from(os.environ[MODULE_ENV])

from leankv_kernels import _cpu  # noqa: E402

__all__ = ["_cpu"]
