"""What a task is given: the model, the systems, the limits, and what is already done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from bench.common.data import wikitext
from bench.quality.items import ItemStore, code_digest, digest_of
from bench.quality.systems import RAW, System, cache_of
from leankv_kernels import get_ops
from leankv_sglang.offline.packed import PackedModel

CONTEXT = 4096
"""Tokens of the context whose physical bytes every row's ratio is about."""
RATIO_WINDOWS = 2
SERVED_DTYPE = "bfloat16"
Row = dict[str, Any]


@dataclass(frozen=True)
class Limits:
    """How much of a task is done.

    Args:
        items: of an answer task, contexts or problems; None for the task's own number.
        windows, length: of ``text``.
        lengths: context lengths of retrieval tasks, tokens.
        max_new: tokens of an answer at most, where the task's own number is larger.
        batch: answers decoded together.
        tokens: tokens held at a time while answers are decoded.
        repeats: seeds of tasks that are drawn at random.
        samples: answers drawn for each problem of ``humaneval``; 0 for one greedy answer.
        temperature: of answers that are drawn.
    """

    items: int | None = None
    windows: int = 4
    length: int = CONTEXT
    lengths: tuple[int, ...] = (2048, 4096, 8192)
    max_new: int | None = None
    batch: int = 16
    tokens: int = 49152
    repeats: int = 1
    samples: int = 0
    temperature: float = 0.6


@dataclass
class Bench:
    """One evaluation: a model, its systems, the store of finished items.

    Args:
        tokenizer: the model's.
        systems: besides the exact cache, which always runs.
        text: what windows and haystacks are taken from; by default the held-out half of WikiText-2.
    """

    model: PackedModel
    tokenizer: Any
    systems: list[System]
    store: ItemStore
    page_size: int = 128
    text: str | None = None
    quiet: bool = False
    _ids: list[int] = field(default_factory=list)

    @property
    def dtype(self) -> str:
        """What the model computes in."""
        return str(self.model.model.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """What it runs on: cpu, or the GPU's name."""
        device = self.model.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    @property
    def every(self) -> list[System | None]:
        """The exact cache (None) and the systems."""
        return [None, *self.systems]

    def text_ids(self) -> list[int]:
        """Tokens of the text."""
        if not self._ids:
            self._ids = list(self.tokenizer(self.haystack(), add_special_tokens=False, verbose=False).input_ids)
        return self._ids

    def haystack(self) -> str:
        """The text."""
        return wikitext("heldout") if self.text is None else self.text

    def key(self, system: System | None, item: Any) -> dict[str, Any]:
        """Everything that decides the value of an item: the model, the system, the code, and what is asked."""
        what: dict[str, Any] = {"model": self.model.name, "weights": self.model.digest, "item": item}
        what |= {"system": RAW, "code": code_digest(system is not None), "dtype": self.dtype, "device": self.device}
        if system is not None:
            what |= {"system": system.digest, "page_size": self.page_size}
            what["kernels"] = get_ops(self.model.device, system.config.kernels).describe()
        return what

    def ratio(self, system: System | None) -> float:
        """16-bit bytes over physical bytes of a context of 4,096 tokens, over the text's first two such windows.

        Raises:
            ValueError: when the text has no such window.
        """
        if system is None:
            return 1.0
        windows = range(max(min(RATIO_WINDOWS, self.window_count(CONTEXT)), 1))
        for index in windows:
            if self._bytes(system, index) is None:
                ids = self.window(index, CONTEXT)
                cache = cache_of(self.model, system, self.page_size, 1, CONTEXT)
                state = cache.new(CONTEXT)
                self.model.prefill(cache, [(state, ids)])
                self.keep_bytes(system, index, cache.context_bytes(state))
        held = [value["bytes"] for value in (self._bytes(system, index) for index in windows) if value]
        return CONTEXT * self.model.shape.token_bytes * len(held) / sum(held)

    def keep_bytes(self, system: System, window: int, held: int) -> None:
        """Note the bytes of a window of 4,096 tokens."""
        if self._bytes(system, window) is None:
            self.store.put("bytes", self._bytes_key(system, window), {"bytes": held})

    def window_count(self, length: int) -> int:
        """Windows of so many tokens that the text has."""
        return len(self.text_ids()) // length

    def window(self, index: int, length: int) -> list[int]:
        """Tokens of one window of the text.

        Raises:
            ValueError: when the text is too short.
        """
        ids = self.text_ids()[index * length : (index + 1) * length]
        if len(ids) < length:
            raise ValueError(f"the text has {len(self.text_ids())} tokens: too few for window {index + 1} of {length}")
        return ids

    def _bytes(self, system: System, window: int) -> dict[str, Any] | None:
        return self.store.get("bytes", self._bytes_key(system, window))

    def _bytes_key(self, system: System, window: int) -> dict[str, Any]:
        return self.key(system, digest_of(self.window(window, CONTEXT)))

    def row(self, system: System | None, task: str, **measured: Any) -> Row:
        """A row with every key that rows have; what a task does not measure is None."""
        ours = "leankv" if self.dtype == SERVED_DTYPE else f"leankv, {self.dtype}"
        row: Row = {"system": RAW if system is None else system.name, "profile": system.profile if system else ""}
        kind = RAW if system is None else "sglang" if system.fp8 else ours
        row |= {"kind": kind, "task": task, "ratio": self.ratio(system)}
        row |= dict.fromkeys(("kl", "ppl_rel", "top1", "score", "score_raw", "spread", "n"))
        row |= {"model": self.model.name, "page_size": self.page_size, "device": self.device}
        row |= {"near_pages": system.config.near_pages if system and not system.fp8 else None}
        return row | measured


class Task(Protocol):
    """One task: a module of ``bench.quality.tasks``."""

    name: str

    def run(self, bench: Bench, limits: Limits, seed: int) -> list[Row]:
        """Do what is not done yet, for the exact cache and every system; returns rows."""
        ...


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for fewer than two values)."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, 0.0
    return mean, (sum((x - mean) ** 2 for x in values) / (count - 1) / count) ** 0.5
