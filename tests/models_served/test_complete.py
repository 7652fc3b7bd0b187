"""Nothing that SGLang serves is forgotten here."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from tests.models_served import MODELS
from tests.models_served.left_out import LEFT_OUT, why_left_out


def of_sglang() -> set[str]:
    """The classes that SGLang has; its files say so at their ends."""
    spec = find_spec("sglang")
    assert spec
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "srt" / "models"
    lists = [re.search(r"^EntryClass = (\[.*?\]|\w+)", path.read_text(), re.S | re.M) for path in folder.glob("*.py")]
    return {name for found in lists if found for name in re.findall(r"\w+", found[1])}


def here() -> set[str]:
    """The classes of the tiny models."""
    names = set()
    for model in MODELS.values():
        kind = getattr(transformers, model.config).model_type
        mapping = MODEL_MAPPING_NAMES if model.embeds else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        names.add(model.architecture or (mapping[kind] if model.auto.startswith("Auto") else model.auto))
    return names


def test_every_class_of_sglang_is_here_or_left_out_for_a_reason() -> None:
    theirs, ours = of_sglang(), here()
    assert len(theirs) > 200
    assert {name for name in theirs - ours if why_left_out(name) is None} == set()


def test_every_reason_is_one_of_something() -> None:
    left = of_sglang() - here()
    reasons = {why_left_out(name) for name in left}
    assert reasons - {None} == set(LEFT_OUT.values())
