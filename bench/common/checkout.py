"""Lets benches import ``leankv_kernels`` from the checkout's folder ``kernels/`` where it is not installed.

Import this module before ``leankv_kernels``. Nothing happens where the package is installed.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAME = "leankv_kernels"
FOLDER = Path(__file__).resolve().parents[2] / "kernels"


def _load() -> None:
    spec = importlib.util.spec_from_file_location(
        NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


if importlib.util.find_spec(NAME) is None:
    _load()
