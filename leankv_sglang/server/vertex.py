"""Parameters of ``/vertex_generate``: fields of ``/generate`` that SGLang takes as they come, without its model."""

from __future__ import annotations

import dataclasses
import json
import typing
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from leankv_patches.schema_words import schema_sentence
from leankv_sglang.errors import LeanKVError

PROMPTS = ("text", "input_ids", "input_embeds", "image_data")
"""Fields of ``/generate`` that an instance has instead."""


def check_parameters(parameters: dict[str, Any]) -> None:
    """Whether these are fields of ``/generate`` of their types, as that route would find.

    Raises:
        LeanKVError: one sentence naming the field.
    """
    types = _types()
    for name, value in parameters.items():
        if name not in types or name in PROMPTS:
            raise LeanKVError(
                f"parameters of this route are fields of /generate but the prompt, which {name!a} is not."
            )
        if value is None:
            continue
        try:
            types[name].validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            found = [{**one, "loc": ("parameters", name, *one["loc"])} for one in error.errors()]
            raise LeanKVError(schema_sentence(found)) from None


@cache
def _types() -> dict[str, TypeAdapter[Any]]:
    from sglang.srt.managers.io_struct import GenerateReqInput

    hints = typing.get_type_hints(GenerateReqInput)
    return {field.name: TypeAdapter(hints[field.name]) for field in dataclasses.fields(GenerateReqInput)}
