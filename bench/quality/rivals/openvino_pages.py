"""OpenVINO's quantized caches in the form that OpenVINO GenAI serves with: pages read by its paged attention.

GenAI itself gives no logits of prompt tokens. It reads the GGUF and saves the model it made of it; the runtime turns
that into the paged one by the same transformation, and here we hand it pages as GenAI's scheduler would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .common import CHUNK, CONTEXT, Profile, Trace

_EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
"""Keeps what the engine rounds elsewhere out of the comparison."""

_GROUPS = {"KEY_CACHE_GROUP_SIZE": "32", "VALUE_CACHE_GROUP_SIZE": "32"}


def saved_model(gguf: Path) -> Path:
    """GenAI's model of a GGUF file, saved beside it at the first call."""
    model = gguf.with_name("openvino_model.xml")
    if not model.exists():
        import openvino_genai

        openvino_genai.LLMPipeline(str(gguf), "CPU", enable_save_ov_model=True)
    return model


class OpenVinoEngine:
    """OpenVINO's CPU plugin with paged attention."""

    name = "OpenVINO"

    def __init__(self, model: Path, threads: int | None) -> None:
        import openvino
        from openvino._offline_transformations import paged_attention_transformation

        self.core = openvino.Core()
        self.model = self.core.read_model(str(model))
        paged_attention_transformation(self.model)
        self.options = _EXACT | ({"INFERENCE_NUM_THREADS": str(threads)} if threads else {})

    def profiles(self) -> list[Profile]:
        """The precisions of its cache; keys are quantized per channel and page, values per token."""
        settings = {
            "u8": {"KV_CACHE_PRECISION": "u8"},
            "u8/u4": {"KEY_CACHE_PRECISION": "u8", "VALUE_CACHE_PRECISION": "u4"},
            "u4": {"KV_CACHE_PRECISION": "u4"},
            "u4, groups of 32": {"KV_CACHE_PRECISION": "u4", **_GROUPS},
        }
        return [Profile(self.name, name, setting=setting) for name, setting in settings.items()]

    def trace(self, ids: Tensor, profile: Profile | None) -> Trace:
        """Runs one window; attention reads the pages throughout, the context's own chunks included."""
        import numpy as np
        import openvino

        options = profile.setting if profile else {"KV_CACHE_PRECISION": "f16"}
        compiled = self.core.compile_model(self.model, "CPU", self.options | options)
        caches = [port for port in compiled.inputs if port.any_name.startswith(("key_cache.", "value_cache."))]
        # A page's tokens are the third axis of the value cache; that of the keys also holds their scales.
        page = next(port for port in caches if port.any_name == "value_cache.0").partial_shape[2].get_length()
        pages = -(-len(ids) // page)
        request, page_bytes = compiled.create_infer_request(), 0
        for port in caches:
            shape = [pages, *(size.get_length() for size in list(port.partial_shape)[1:])]
            tensor = openvino.Tensor(port.element_type, openvino.Shape(shape))
            page_bytes += tensor.byte_size // pages
            request.set_tensor(port, tensor)

        def run(start: int, piece: Tensor) -> Tensor:
            end = start + len(piece)
            used = -(-end // page)
            inputs: dict[str, Any] = {
                "input_ids": piece.numpy(),
                "position_ids": np.arange(start, end, dtype=np.int64),
                "past_lens": np.array([start], np.int32),
                "subsequence_begins": np.array([0, len(piece)], np.int32),
                "block_indices": np.arange(used, dtype=np.int32),
                "block_indices_begins": np.array([0, used], np.int32),
                "max_context_len": np.array(end, np.int32),
            }
            request.infer(inputs)
            return torch.from_numpy(request.get_tensor("logits").data.reshape(len(piece), -1)).clone()

        logits = []
        for start in range(0, len(ids), CHUNK):
            found = run(start, ids[start : start + CHUNK])
            if start >= CONTEXT:
                logits.append(found)
        return Trace(torch.cat(logits)[:-1], -(-CONTEXT // page) * page_bytes, pages * page_bytes)
