"""The signatures of ops, which every backend's have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from leankv_kernels.layout import RecordLayout
from leankv_kernels.packed import PackedPages
from leankv_kernels.plan import Plan
from leankv_kernels.raw import RawPages
from leankv_kernels.store import RecordStore
from leankv_kernels.tier_rule import TierRule


class AttendOpen(Protocol):
    """Causal attention inside each tile's raw page; see ``reference.attention.attend_open``."""

    def __call__(
        self, q: Tensor, raw: RawPages, plan: Plan, scale: float, cap: float = 0.0
    ) -> tuple[Tensor, Tensor]: ...


class AttendCommitted(Protocol):
    """Attention over committed pages by the read rule; see ``reference.attention.attend_committed``."""

    def __call__(
        self, q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str, cap: float = 0.0
    ) -> tuple[Tensor, Tensor]: ...


class MergeStates(Protocol):
    """Merge of two partial attentions; see ``reference.attention.merge_states``."""

    def __call__(
        self,
        out_a: Tensor,
        lse_a: Tensor,
        out_b: Tensor,
        lse_b: Tensor,
        dtype: torch.dtype | None = None,
        sinks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


class AttendWindow(Protocol):
    """Attention over the last raw keys of each query; see ``reference.window.attend_window``."""

    def __call__(
        self,
        q: Tensor,
        key: Tensor,
        value: Tensor,
        slots: Tensor,
        q_indptr: Sequence[int] | Tensor,
        kv_indptr: Sequence[int] | Tensor,
        kv_start: Sequence[int] | Tensor,
        window: int,
        scale: float,
        cap: float = 0.0,
        sinks: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor: ...


class Linear(Protocol):
    """Rows through a layer of 16 bits; see ``reference.linear.linear``."""

    def __call__(self, x: Tensor, weight: Tensor, /) -> Tensor: ...


class WriteTokens(Protocol):
    """A forward's tokens into its tiles' pages; see ``RawPages.write``."""

    def __call__(self, raw: RawPages, plan: Plan, key: Tensor, value: Tensor, /) -> None: ...


class CommitPages(Protocol):
    """Pack full pages into records; see ``reference.commit.commit_pages``."""

    def __call__(
        self, store: RecordStore, layer: int, pages: Tensor, raw: RawPages, tiers: Tensor, rotation: str
    ) -> None: ...


class TierPages(Protocol):
    """Tiers of the tokens of full pages; see ``reference.tiers.tier_pages``."""

    def __call__(self, raw: RawPages, layer: int, rule: TierRule, alphas: Tensor, page_index: Tensor) -> Tensor: ...


class CommitBytes(Protocol):
    """Memory that tiers and commit take beside what they are given; see ``reference.commit.commit_bytes``."""

    def __call__(self, layout: RecordLayout, query_heads: int, itemsize: int) -> int: ...


class FreePages(Protocol):
    """Return the blocks of pages in all layers; see ``RecordStore.free``."""

    def __call__(self, store: RecordStore, pages: Tensor, /) -> None: ...


class CutPages(Protocol):
    """Cut the records of pages in all layers; see ``RecordStore.cut``."""

    def __call__(self, store: RecordStore, pages: Tensor, level: Tensor, /) -> None: ...


class CountPages(Protocol):
    """Blocks of pages at each level and tokens of each tier; see ``RecordStore.count_pages``."""

    def __call__(self, store: RecordStore, pages: Tensor, /) -> Tensor: ...


class CountHeads(Protocol):
    """Bytes of pages and tokens of each tier by layer and KV head; see ``RecordStore.count_heads``."""

    def __call__(self, store: RecordStore, pages: Tensor, /) -> Tensor: ...


class PackPages(Protocol):
    """Copy pages out of a store; see ``reference.packing.pack_pages``."""

    def __call__(
        self, store: RecordStore, pages: Tensor, level: Tensor, room: tuple[int, int] | None = None, /
    ) -> PackedPages: ...


class UnpackPages(Protocol):
    """Take pages into a store; see ``reference.packing.unpack_pages``."""

    def __call__(self, store: RecordStore, pages: Tensor, packed: PackedPages, /) -> None: ...
