"""Tiny random models of the architectures that SGLang can serve on a CPU, for tests and ``bench.architectures``."""

from tests.models_served.dense import DENSE
from tests.models_served.experts import EXPERTS
from tests.models_served.model import Folders, Model
from tests.models_served.others import OTHERS
from tests.models_served.windows import WINDOWS

MODELS: dict[str, Model] = {**DENSE, **WINDOWS, **EXPERTS, **OTHERS}
"""Every one by its name."""

__all__ = ["MODELS", "Folders", "Model"]
