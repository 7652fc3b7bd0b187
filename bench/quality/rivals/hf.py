"""Rivals that run inside transformers: its quantized caches, kvpress's presses, and both together."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .common import CHUNK, CONTEXT, Profile, Trace, tensor_bytes
from .presses import make_press, masked_fraction, press_profiles, replays

_SMALL = 32
"""A short residual: so many tokens stay in 16 bits before they are quantized."""


def quantized_profiles() -> list[Profile]:
    """transformers' QuantizedCache with each backend, at its defaults and with a short residual."""
    found = []
    for backend, bits in (("hqq", 8), ("hqq", 4), ("quanto", 4), ("hqq", 2), ("quanto", 2)):
        cache = {"backend": backend, "nbits": bits}
        found.append(Profile("transformers", f"{backend} {bits}", setting={"cache": cache}))
        if (backend, bits) == ("quanto", 4):
            # A residual is emptied by the chunk that finds it full, so half of it is what enters at a time.
            setting = {"cache": {**cache, "residual_length": _SMALL // 2}, "chunk": _SMALL // 2}
            found.append(Profile("transformers", f"{backend} {bits}, residual {_SMALL}", setting=setting))
        if backend == "hqq" and bits < 8:
            setting = {"cache": {**cache, "axis_key": 1, "axis_value": 1}}
            found.append(Profile("transformers", f"{backend} {bits}, axis 1", setting=setting))
        if backend == "quanto":
            setting = {"cache": {**cache, "axis_key": -1, "axis_value": -1}}
            found.append(Profile("transformers", f"{backend} {bits}, axis -1", setting=setting))
    return found


@dataclass
class Prefill:
    """A context read with full attention: what every press's hook is given, per layer."""

    ids: Tensor
    calls: list[dict[str, Any]]
    """Keyword arguments of each layer's attention."""
    kept: list[tuple[Tensor, Tensor]]
    """Keys and values ``[1, H, T, D]``."""


class TransformersEngine:
    """A transformers model in bfloat16."""

    name = "transformers"

    def __init__(self, path: str) -> None:
        from transformers import AutoModelForCausalLM
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        logging.getLogger("kvpress").setLevel(logging.ERROR)
        disable_progress_bar()
        set_verbosity_error()
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        self.prefill: Prefill | None = None

    def profiles(self) -> list[Profile]:
        """Of transformers alone and of kvpress."""
        return quantized_profiles() + press_profiles()

    def read(self, ids: Tensor) -> Prefill:
        """Reads a context ``[T]`` once, for every profile: none of them changes what its tokens see of each other."""
        from transformers import DynamicCache

        cache, calls = DynamicCache(), []
        layers = self.model.model.layers
        hooks = [
            layer.self_attn.register_forward_hook(lambda _m, _a, kwargs, _o: calls.append(kwargs), with_kwargs=True)
            for layer in layers
        ]
        try:
            self.model.model(input_ids=ids[None], past_key_values=cache)
        finally:
            for hook in hooks:
                hook.remove()
        return Prefill(ids, calls, [(layer.keys, layer.values) for layer in cache.layers])

    def compress(self, prefill: Prefill, setting: dict[str, Any]) -> Any:
        """The context's cache, compressed without sight of what follows."""
        from transformers import DynamicCache, QuantizedCache

        quantized = "cache" in setting
        cache: Any = QuantizedCache(config=self.model.config, **setting["cache"]) if quantized else DynamicCache()
        press = make_press(setting) if "press" in setting else None
        core, layers = self.model.model, self.model.model.layers
        for layer in layers:
            layer.self_attn.masked_key_indices = None
            layer.self_attn.rotary_emb = core.rotary_emb

        own = core.forward

        def fill() -> None:
            for index, (layer, call) in enumerate(zip(layers, prefill.calls, strict=True)):
                cache.update(*(part.clone() for part in prefill.kept[index]), index)
                if press is not None and not replays(press):
                    press.forward_hook(layer.self_attn, [], {**call, "past_key_values": cache}, [None, None])

        def forward(**inputs: Any) -> Any:
            # KVzip's context manager keeps the forward pass it finds and scores the context with it afterwards.
            return own(**inputs) if cache.get_seq_length() else fill()

        core.forward = forward
        try:
            if press is not None and not replays(press):
                press.post_init_from_model(self.model)
            with press(self.model) if press is not None and replays(press) else nullcontext():
                core(input_ids=prefill.ids[None], past_key_values=cache)
        finally:
            core.forward = own
        return cache

    def extend(self, ids: Tensor, cache: Any, position: int, chunk: int) -> Iterator[Tensor]:
        """Logits ``[t, V]`` of ``ids`` after a context of ``position`` tokens, chunk by chunk."""
        for piece in ids.split(chunk):
            # A pruned cache counts fewer tokens than were read: positions are those of the text.
            positions = torch.arange(position, position + len(piece))[None]
            yield self.model(input_ids=piece[None], past_key_values=cache, position_ids=positions).logits[0]
            position += len(piece)

    def trace(self, ids: Tensor, profile: Profile | None) -> Trace:
        """Runs one window."""
        setting = profile.setting if profile else {}
        if self.prefill is None or not torch.equal(self.prefill.ids, ids[:CONTEXT]):
            self.prefill = self.read(ids[:CONTEXT])
        cache = self.compress(self.prefill, setting)
        held_context = tensor_bytes(cache)
        chunk = setting.get("chunk", CHUNK)
        logits = torch.cat(list(self.extend(ids[CONTEXT:], cache, CONTEXT, chunk)))[:-1]
        held = tensor_bytes(cache)
        freed = None
        masked = masked_fraction(self.model, CONTEXT)
        if masked:
            freed = held - round(masked * held_context)
        return Trace(logits, held_context, held, freed)
