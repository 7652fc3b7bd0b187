"""What decides a page's bytes besides its tokens: who reads a page must agree with who wrote it in all of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable

import torch
from torch import Tensor

from leankv_sglang.config import LeanKVConfig
from leankv_sglang.offload.page_object import IDENTITY_BYTES

GENERATION = 1
"""Of the kernels: another one where the same tokens may come to have other bytes."""
_PIECE = 1 << 22
"""Words of a parameter that are looked at together: memory beside a full pool is short."""
_OF_THE_CACHE = ("demote", "match", "kernels", "profile", "predictor", "host_memory", "store", "store_size", "load")
"""What of the configuration does not change a page's bytes: how the cache is run, and where things are found."""


def identity(config: LeanKVConfig, facts: dict[str, object], weights: bytes) -> bytes:
    """A hash over all that decides bytes, ``IDENTITY_BYTES`` long.

    Args:
        config: how pages are compressed.
        facts: the model's shape, dtype, tensor-parallel rank and size, kernels and device; JSON.
        weights: see :func:`digest_of_weights`.
    """
    method = {name: value for name, value in dataclasses.asdict(config).items() if name not in _OF_THE_CACHE}
    said = json.dumps([GENERATION, method, facts, weights.hex()], sort_keys=True)
    return hashlib.sha256(said.encode()).digest()[:IDENTITY_BYTES]


def digest_of_weights(named: Iterable[tuple[str, Tensor]]) -> bytes:
    """A hash over every parameter as it lies on the device: name, shape, dtype, and two sums over its words, one of
    them weighted by position, so that a change anywhere shows. Reads all weights once, where they are."""
    whole = hashlib.sha256()
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        sums = [0, 0]
        for start, words in enumerate(_words(tensor).split(_PIECE)):
            position = torch.arange(start * _PIECE, start * _PIECE + len(words), device=words.device) * 2 + 1
            sums[0] += int(words.sum(dtype=torch.int64))
            sums[1] += int((words * position).sum())
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {sums}\n".encode())
    return whole.digest()


def _words(tensor: Tensor) -> Tensor:
    """Its bytes as int32, those behind the last whole word as integers of their own."""
    flat = tensor.detach().contiguous().flatten().view(torch.uint8)
    whole = len(flat) // 4 * 4
    body, rest = flat[:whole], flat[whole:].to(torch.int32)
    # A view of int32 wants an aligned beginning.
    body = (body if flat.storage_offset() % 4 == 0 else body.clone()).view(torch.int32)
    return torch.cat([body, rest]) if len(rest) else body
