"""A Hugging Face model over packed sequences: one forward over new tokens of several, attention by a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leankv_sglang.compression.significance import Significance
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from leankv_sglang.models import resolve_model_path
from leankv_sglang.models.shape import full_layers, shape_of
from leankv_sglang.offline.caches import Cache, State
from leankv_sglang.offline.hf import FinalLogits, rule_of
from leankv_sglang.offline.lean_cache import LeanCache
from leankv_sglang.offline.raw_cache import RawCache
from leankv_sglang.products import cover_products

CHUNK, GPU_CHUNK = 2048, 16384
"""Tokens of a prefill forward; what comes out does not depend on it."""
_NAME = "packed"


class PackedModel:
    """A causal language model whose attention is given to a cache, sequence by sequence; layers with a sliding window,
    where SGLang has them, keep the window that transformers gives them.

    Everything but attention works token by token, so a forward over ``[1, sum T]`` tokens of any sequences with their
    positions is what each would have alone.

    Args:
        model: a Hugging Face model that attends by transformers' interface.
        name: for rows.
        cache_dtype: of raw keys and values; the model's by default.
    """

    def __init__(self, model: Any, name: str, cache_dtype: torch.dtype | None = None) -> None:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        self.model, self.name = model.eval(), name
        self.cache_dtype = cache_dtype or model.dtype
        self.device: torch.device = model.device
        if self.device.type == "cpu" and (said := cover_products(model, model.dtype)):
            raise LeanKVError(said)
        config = model.config.to_dict()
        self.shape = shape_of(config)
        self.layers = {layer: index for index, layer in enumerate(full_layers(config))}
        """Numbers of the layers without a window among themselves, by the model's own."""
        self._final = FinalLogits.of(config)
        self.digest = ""
        self._cache: Cache[Any] | None = None
        # One name per model: the registry is the library's, for all models of the process.
        key = f"{_NAME}_{id(self)}"
        ALL_ATTENTION_FUNCTIONS.register(key, self._attend)
        model.set_attn_implementation(key)

    @classmethod
    def load(
        cls, name: str | None, dtype: torch.dtype = torch.bfloat16, device: torch.device | str = "cpu"
    ) -> tuple[PackedModel, Any]:
        """The model and its tokenizer, by catalog name or folder.

        Args:
            dtype: what the model computes in. Raw keys and values have 16 bits all the same: float16 beside float32.
            device: where model and caches live.

        Raises:
            ModelError: when it cannot be fetched.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = Path(resolve_model_path(name))
        cache_dtype = torch.float16 if dtype == torch.float32 else dtype
        packed = cls(AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device), path.name, cache_dtype)
        packed.digest = _folder_digest(path)
        return packed, AutoTokenizer.from_pretrained(path)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ids = self.model.generation_config.eos_token_id
        return frozenset([ids] if isinstance(ids, int) else ids or [])

    def cache(
        self,
        config: LeanKVConfig | None,
        page_size: int,
        rows: int,
        tokens: int,
        alphas: Tensor | None = None,
        significance: Significance | None = None,
    ) -> Cache[Any]:
        """An empty cache for so many sequences and tokens at a time; without a configuration the exact one.

        Args:
            alphas, significance: other than the configuration's, see :class:`LeanCache`.
        """
        if config is None:
            return RawCache(self.shape, rows, self.cache_dtype, self.device)
        lean = (config, page_size, rows, tokens, self.cache_dtype, alphas, significance)
        return LeanCache(self.shape, *lean, self.device)

    @torch.inference_mode()
    def extend(self, cache: Cache[Any], batch: Sequence[tuple[State, Sequence[int]]]) -> Tensor:
        """One forward over new tokens of sequences; returns the last layer's output after its norm ``[sum T, C]``."""
        ids = torch.tensor([token for _, tokens in batch for token in tokens])
        positions = torch.cat([torch.arange(s.length, s.length + len(tokens)) for s, tokens in batch])
        ids, positions = ids.to(self.device), positions.to(self.device)
        cache.begin([(state, len(tokens)) for state, tokens in batch])
        count = len(ids)
        if count == 1:
            # A lone row takes another path through the matrix library, with other last bits: see patches/single_row.
            ids, positions = ids.expand(2), positions.expand(2)
        self._cache = cache
        hidden = self.model.base_model(input_ids=ids[None], position_ids=positions[None], use_cache=False)
        cache.end()
        out: Tensor = hidden.last_hidden_state[0, :count]
        return out

    def prefill(
        self, cache: Cache[Any], batch: Sequence[tuple[State, Sequence[int]]], chunk: int | None = None
    ) -> list[Tensor]:
        """Extend sequences in forwards of at most ``chunk`` tokens; returns each one's outputs ``[T, C]``."""
        chunk = chunk or (CHUNK if self.device.type == "cpu" else GPU_CHUNK)
        parts: list[list[Tensor]] = [[] for _ in batch]
        done, now, room = [0] * len(batch), 0, 0
        while now < len(batch):
            work, room, first = [], chunk, now
            while now < len(batch) and room:
                state, tokens = batch[now]
                take = tokens[done[now] : done[now] + room]
                work.append((state, take))
                room -= len(take)
                done[now] += len(take)
                if done[now] < len(tokens):
                    break
                now += 1
            out = self.extend(cache, work)
            for i, part in enumerate(out.split([len(tokens) for _, tokens in work])):
                parts[first + i].append(part)
        return [torch.cat(part) for part in parts]

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Float32 logits ``[n, V]`` of outputs ``[n, C]``, computed in the model's dtype as a server does."""
        rows = hidden if len(hidden) > 1 else hidden.expand(2, -1)
        return self._final(self.model.lm_head(rows)[: len(hidden)]).float()

    def _attend(
        self, module: Any, q: Tensor, k: Tensor, v: Tensor, _mask: Any, scaling: float, **more: Any
    ) -> tuple[Tensor, None]:
        cache = self._cache
        assert cache is not None
        count, total = cache.tokens, q.shape[2]
        query, key, value = (x[0].transpose(0, 1)[:count] for x in (q, k, v))
        rule = rule_of(scaling, more)
        if (index := self.layers.get(module.layer_idx)) is not None:
            out = cache.attend(index, query, key, value, rule._replace(window=None))
        else:
            out = cache.attend_window(module.layer_idx, query, key, value, rule)
        if total > count:
            out = torch.cat([out, out.new_zeros(total - count, *out.shape[1:])])
        return out[None], None


def _folder_digest(folder: Path) -> str:
    """Hash of a model folder: its configuration, and names, sizes and beginnings of its weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with open(file, "rb") as data:
            digest.update(data.read(1 << 20))
            data.seek(max(file.stat().st_size - (1 << 20), 0))
            digest.update(data.read())
    return digest.hexdigest()[:16]
