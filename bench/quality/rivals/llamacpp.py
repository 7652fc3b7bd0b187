"""llama.cpp's quantized caches, through the library inside the xllamacpp wheel.

Its Python classes only serve text; the C functions in the same file give logits of every position.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .common import CHUNK, CONTEXT, TAIL, Profile, Trace

TYPES = {"f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}
"""ggml's numbers of the cache types."""

PAIRS = (("q8_0", "q8_0"), ("q8_0", "q4_0"), ("q5_1", "q5_1"), ("q4_0", "q4_0"))
"""Types of keys and of values."""


class _Params(ctypes.Structure):
    """Either of the library's parameter structs, by its words; larger than they are, so a copy takes all of them."""

    _fields_ = (("words", c_uint32 * 128),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", c_void_p),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


_WORDS = {"n_ctx": (0, 512), "n_batch": (1, 2048), "n_ubatch": (2, 512), "n_threads": (7, 4), "n_threads_batch": (8, 4)}
_WORDS |= {"flash_attn": (13, 0xFFFFFFFF), "type_k": (26, 1), "type_v": (27, 1)}
"""Where the pinned version keeps a context's parameters, in words of 4 bytes, and their defaults."""


def _library() -> Any:
    import xllamacpp.xllamacpp as module

    lib = ctypes.CDLL(module.__file__)
    lib.llama_context_default_params.restype = _Params
    lib.llama_model_default_params.restype = _Params
    lib.llama_model_load_from_file.restype = c_void_p
    lib.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _Params]
    lib.llama_init_from_model.restype = c_void_p
    lib.llama_init_from_model.argtypes = [c_void_p, _Params]
    lib.llama_free.argtypes = [c_void_p]
    lib.llama_batch_init.restype = _Batch
    lib.llama_batch_init.argtypes = [c_int32, c_int32, c_int32]
    lib.llama_batch_free.argtypes = [_Batch]
    lib.llama_decode.argtypes = [c_void_p, _Batch]
    lib.llama_get_logits_ith.restype = POINTER(c_float)
    lib.llama_get_logits_ith.argtypes = [c_void_p, c_int32]
    lib.llama_state_seq_get_size.restype = c_size_t
    lib.llama_state_seq_get_size.argtypes = [c_void_p, c_int32]
    return lib


class LlamaCppEngine:
    """llama.cpp with flash attention, on a model with 16-bit weights."""

    name = "llama.cpp"

    def __init__(self, gguf: Path, vocabulary: int, threads: int | None) -> None:
        self.lib, self.vocabulary, self.threads = _library(), vocabulary, threads or torch.get_num_threads()
        self._log = ctypes.CFUNCTYPE(None, c_int32, ctypes.c_char_p, c_void_p)(lambda *_: None)
        self.lib.llama_log_set(self._log, None)
        self.lib.llama_backend_init()
        self.model = self.lib.llama_model_load_from_file(str(gguf).encode(), self.lib.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp could not load {gguf.name}")

    def profiles(self) -> list[Profile]:
        """Pairs of cache types."""
        return [Profile(self.name, f"{k}/{v}", setting={"type_k": k, "type_v": v}) for k, v in PAIRS]

    def _context(self, type_k: str, type_v: str) -> Any:
        params = self.lib.llama_context_default_params()
        for name, (word, default) in _WORDS.items():
            if params.words[word] != default:
                raise RuntimeError(f"{name} is not where this version of llama.cpp should have it")
        chosen = {"n_ctx": CONTEXT + TAIL, "n_ubatch": CHUNK, "flash_attn": 1}
        chosen |= {"n_threads": self.threads, "n_threads_batch": self.threads}
        chosen |= {"type_k": TYPES[type_k], "type_v": TYPES[type_v]}
        for name, value in chosen.items():
            params.words[_WORDS[name][0]] = value
        context = self.lib.llama_init_from_model(self.model, params)
        if not context:
            raise RuntimeError("llama.cpp refused the context")
        return context

    def trace(self, ids: Tensor, profile: Profile | None) -> Trace:
        """Runs one window; attention reads the quantized cache throughout, the context's own chunks included."""
        types = profile.setting if profile else {"type_k": "f16", "type_v": "f16"}
        context, batch = self._context(**types), self.lib.llama_batch_init(CHUNK, 0, 1)
        logits, held = [], {}
        try:
            for start in range(0, len(ids), CHUNK):
                piece = ids[start : start + CHUNK].tolist()
                batch.n_tokens = len(piece)
                for i, token in enumerate(piece):
                    batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
                    batch.logits[i] = start >= CONTEXT
                if status := self.lib.llama_decode(context, batch):
                    raise RuntimeError(f"llama_decode gave {status}")
                held[start + len(piece)] = self.lib.llama_state_seq_get_size(context, 0)
                if start >= CONTEXT:
                    logits += [self._row(context, i) for i in range(len(piece))]
        finally:
            self.lib.llama_batch_free(batch)
            self.lib.llama_free(context)
        return Trace(torch.stack(logits[:-1]), held[CONTEXT], held[len(ids)])

    def _row(self, context: Any, index: int) -> Tensor:
        found = self.lib.llama_get_logits_ith(context, index)
        return torch.frombuffer(
            (c_float * self.vocabulary).from_address(ctypes.addressof(found.contents)), dtype=torch.float32
        ).clone()
