"""The physical store: one pool of fixed-byte blocks for all layers, heads and tiers; and the table of records."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from leankv_kernels import layout as L
from leankv_kernels.layout import Header, RecordLayout, read_header
from leankv_kernels.memory import prefer_huge_pages
from leankv_kernels.ring import BlockRing


class Usage(NamedTuple):
    """What the live records hold. Bytes unless said; the first six add up to ``blocks * block_bytes``."""

    header: int
    high: int
    mid: int
    low: int
    near: int
    padding: int
    records: int
    blocks: int
    high_tokens: int  # tokens per KV head and layer, so one token of a page counts layers * heads times
    mid_tokens: int
    low_tokens: int
    pruned_tokens: int
    saturated: int = 0  # keys and values of tokens, a KV head's each, of which a channel was beyond float16, ever
    not_finite: int = 0  # or not a number, or infinite


_HELD = len(Usage._fields) - 2
"""Of them those that records say; the others only grow."""
_AUDIT_PIECE = 1 << 16
"""Records that an audit looks at together, and a sixteenth of the free blocks: memory beside a full pool is short."""
_AUDITED = (
    "records name another page than the page table",
    "records name another layer than the page table",
    "records are not records",
    "records have another length than their counts say",
)


def _count(seen: Tensor, ids: Tensor) -> None:
    """Add one at each id; ids that are none of the pool's are left for the lists' own check."""
    ids = ids.long().clamp(0, len(seen) - 1)
    seen.index_put_((ids,), torch.ones_like(ids, dtype=torch.uint8), accumulate=True)


class RecordStore:
    """Blocks, page table and free ring. All methods but the audit and those of usage leave the host unasked.

    Args:
        layout: the records' byte layout.
        num_layers: attention layers.
        num_pages: logical page ids run from 1 to ``num_pages``; page 0 is the padding sink and never holds a record.
        device: where everything lives.
        num_blocks: blocks of the pool; by default as many as ``num_pages`` pages take at worst. With fewer, the caller
            sees to it that what is written fits.
    """

    def __init__(
        self,
        layout: RecordLayout,
        num_layers: int,
        num_pages: int,
        device: torch.device | str,
        num_blocks: int | None = None,
    ) -> None:
        self.layout, self.num_layers, self.num_pages = layout, num_layers, num_pages
        self.num_blocks = num_pages * num_layers * layout.max_blocks if num_blocks is None else num_blocks
        # Block 0 stays zero (it reads as "all pruned"), the last one takes the writes of absent blocks. The rest is
        # not touched before it is used, so a large pool costs no start-up time.
        self.blocks = torch.empty(self.num_blocks + 2, layout.block_bytes, dtype=torch.uint8, device=device)
        prefer_huge_pages(self.blocks)
        self.blocks[0] = 0
        self.page_table = torch.zeros(num_layers, num_pages + 1, dtype=torch.int32, device=device)
        self.ring = BlockRing(self.num_blocks, device)
        self.usage_counts = torch.zeros(len(Usage._fields), dtype=torch.int64, device=device)

    def write(self, layer: int, pages: Tensor, records: Tensor, nbytes: Tensor) -> None:
        """Store the encoded records of ``pages`` int64 ``[n]``, none of them held there: those of ``layer``, and behind
        them those of the layers that follow, as many as there are records."""
        lay = self.layout
        count = len(records) // max(len(pages), 1)
        layers = torch.arange(layer, layer + count, device=pages.device).repeat_interleave(len(pages))
        pages = pages.repeat(count)
        counts = -(-nbytes // lay.block_bytes)
        ids = self.ring.take(counts, lay.max_blocks)
        words = records.view(torch.int32)
        words[:, L.W_PAGE] = pages.int()
        words[:, L.W_LAYER] = layers.int()
        words[:, lay.list_word : lay.list_word + lay.max_blocks] = ids
        to = torch.where(ids == 0, self.num_blocks + 1, ids).long().flatten()
        self.blocks[to] = records.view(-1, lay.block_bytes)
        self.page_table[layers, pages] = ids[:, 0]
        self.usage_counts += self._measure(read_header(records, lay))

    @property
    def out_of_range(self) -> Tensor:
        """Where rows of what is committed are counted that saturate, and that are not finite, int64 ``[2]``; see
        :class:`Usage`."""
        return self.usage_counts[_HELD:]

    def gather(self, layer: int, pages: Tensor) -> Tensor:
        """The records of ``pages`` int64 ``[n]`` as uint8 ``[n, record_bytes]``; an absent one reads as all pruned."""
        lay = self.layout
        lists = self._lists(self.page_table[layer, pages].long())
        return self.blocks.index_select(0, lists.flatten()).view(pages.shape[0], lay.record_bytes)

    def free(self, pages: Tensor) -> None:
        """Return the blocks of ``pages`` int64 ``[n]``, no two alike, in every layer; absent ones are passed over."""
        if not pages.numel():
            return
        heads = self.page_table[:, pages].long().flatten()
        self.usage_counts -= self._measure(self._headers(heads))
        self.ring.give(self._lists(heads))
        self.page_table[:, pages] = 0

    def cut(self, pages: Tensor, level: Tensor) -> None:
        """Cut the records of ``pages`` int64 ``[n]``, no two alike, in every layer, to ``level`` int64 ``[n]``.

        The tails' blocks are returned and the headers say so; nothing else is written. Records that hold no more than
        that already stay as they are.
        """
        if not pages.numel():
            return
        lay = self.layout
        heads = self.page_table[:, pages].long().flatten()
        header = self._headers(heads)
        held = header.blocks > 0
        kept = torch.minimum(header.level.long(), level.repeat(self.num_layers))
        nbytes, blocks = self._length_at(header, kept)
        position = torch.arange(lay.max_blocks, device=pages.device)
        lists = self._lists(heads)
        self.usage_counts -= self._measure(header)
        self.ring.give(torch.where(position < blocks[:, None], 0, lists))
        # What holds nothing is block 0, which must stay zero: its words go to the spare block.
        to = torch.where(held, heads, self.num_blocks + 1)
        words = self.blocks.view(torch.int32)
        words[to, L.W_LEVEL] = kept.int()
        words[to, L.W_BYTES] = nbytes.int()
        words[to, L.W_BLOCKS] = blocks.int()
        words[to, lay.list_word : lay.list_word + lay.max_blocks] = torch.where(position < blocks[:, None], lists, 0)
        self.usage_counts += self._measure(header._replace(level=kept, blocks=blocks))

    def swap(self, a: Tensor, b: Tensor) -> None:
        """Exchange what pages ``a`` and ``b`` hold, int64 ``[n]`` each, all different, in every layer."""
        if not a.numel():
            return
        both, other = torch.cat([a, b]), torch.cat([b, a])
        heads = self.page_table[:, other]
        self.page_table[:, both] = heads
        at = torch.where(heads > 0, heads, self.num_blocks + 1).long()
        self.blocks.view(torch.int32)[at, L.W_PAGE] = both.int().expand_as(heads)

    def level_blocks(self, pages: Tensor) -> Tensor:
        """Blocks of ``pages`` int64 ``[n]`` over all layers if cut to each level: int32 ``[n, 3]``, base, far, near.

        A level above what a record holds counts what it holds.
        """
        header = self._headers(self.page_table[:, pages].long().flatten())
        levels = (L.LEVEL_BASE, L.LEVEL_FAR, L.LEVEL_NEAR)
        blocks = [self._length_at(header, header.level.long().clamp(max=level))[1] for level in levels]
        return torch.stack(blocks, -1).view(self.num_layers, -1, 3).sum(0, dtype=torch.int32)

    def count_pages(self, pages: Tensor) -> Tensor:
        """What ``pages`` int64 ``[n]`` take and hold over all layers: int32 ``[n, 6]``.

        First their blocks if cut to each level, see :meth:`level_blocks`; then tokens of all heads that are high, mid
        and low, whatever the level. The rest of a page's tokens are pruned.
        """
        header = self._headers(self.page_table[:, pages].long().flatten())
        tokens = torch.stack([count.sum(1) for count in header.counts], -1) * (header.blocks > 0)[:, None]
        tokens = tokens.view(self.num_layers, -1, 3).sum(0, dtype=torch.int32)
        return torch.cat([self.level_blocks(pages), tokens], 1)

    def clear(self) -> None:
        """Forget every record."""
        self.page_table.zero_()
        self.ring.clear()
        self.usage_counts[:_HELD].zero_()

    def usage(self) -> Usage:
        """What the records hold now (asks the device)."""
        return Usage(*self.usage_counts.tolist())

    def usage_by_head(self) -> Tensor:
        """Bytes of the live records' data by layer and KV head at their present level, int64 ``[layers, H]``.

        Codes, scales, centres, and the padding of runs, see :meth:`RecordLayout.head_bytes`; what headers and the
        padding of whole blocks take belongs to no head. Reads all headers, one layer at a time, and asks the device.
        """
        total = torch.zeros(self.num_layers, self.layout.num_kv_heads, dtype=torch.int64)
        for layer, heads in enumerate(self.page_table):
            header = self._headers(heads[heads > 0].long())
            total[layer] = self.layout.head_bytes(header.counts, header.level).sum(0)
        return total

    def count_heads(self, pages: Tensor) -> Tensor:
        """What ``pages`` int64 ``[n]`` take and hold by layer and KV head, int64 ``[layers, H, 5]``: bytes as
        :meth:`usage_by_head` has them, then tokens that are high, mid, low and pruned. Does not ask the device."""
        heads = self.page_table[:, pages].long().flatten()
        header = self._headers(heads)
        tiers = torch.stack([count.long() for count in header.counts], -1)
        nbytes = self.layout.head_bytes(header.counts, header.level).long()
        pruned = self.layout.page_size - tiers.sum(-1)
        found = torch.cat([nbytes[..., None], tiers, pruned[..., None]], -1) * (heads > 0)[:, None, None]
        return found.view(self.num_layers, len(pages), *found.shape[1:]).sum(1)

    def nbytes(self) -> int:
        """Bytes of everything the store allocated: blocks, page table, ring."""
        return self.blocks.numel() + 4 * self.page_table.numel() + self.ring.nbytes()

    @property
    def _fixed_end(self) -> int:
        return 4 * (self.layout.head_word + L.HEAD_WORDS * self.layout.num_kv_heads)

    def _headers(self, heads: Tensor) -> Header:
        """The headers that begin in blocks ``heads``, tier maps apart."""
        return read_header(self.blocks[heads, : self._fixed_end], self.layout)

    def _length_at(self, header: Header, level: Tensor) -> tuple[Tensor, Tensor]:
        """Bytes and blocks, int64 ``[n]`` each, of records that hold what ``level`` says; 0 for absent ones."""
        nbytes = torch.where(header.blocks > 0, self.layout.level_bytes(header.counts, level), 0)
        return nbytes, -(-nbytes // self.layout.block_bytes)

    def _measure(self, header: Header) -> Tensor:
        """The :class:`Usage` of n records as one int64 vector; absent records (no blocks) count nothing."""
        lay, token = self.layout, self.layout.token_bytes
        held = header.blocks > 0
        fine = (header.level >= L.LEVEL_FAR).long()
        base_bytes = token.scale + token.key_base + token.value_base
        all_fine = token.key_refine + token.value_refine
        mid_fine = lay.mid_refine_bytes
        n_high, n_mid, n_low = (count.sum(1) for count in header.counts)
        high, mid = n_high * (base_bytes + fine * all_fine), n_mid * (base_bytes + fine * mid_fine)
        low = n_low * base_bytes
        n_pruned = (lay.page_size * lay.num_kv_heads - n_high - n_mid - n_low) * held
        near = n_low * all_fine + n_mid * (all_fine - mid_fine) + n_pruned * sum(token)
        near = near * (header.level >= L.LEVEL_NEAR)
        fixed = held.long() * lay.header_bytes
        padding = header.blocks.long() * lay.block_bytes - fixed - high - mid - low - near
        parts = (fixed, high, mid, low, near, padding, held, header.blocks, n_high, n_mid, n_low, n_pruned)
        return torch.nn.functional.pad(torch.stack([p.long().sum() for p in parts]), (0, len(Usage._fields) - _HELD))

    def audit(self) -> list[str]:
        """Check blocks against records: every block is free, or listed by exactly one record found in the table, and
        the running usage equals what the headers say. Returns one sentence per violation; asks the device.
        """
        device, bad = self.blocks.device, dict.fromkeys(_AUDITED, 0)
        # How often each block is free or held; a byte a block, and the rest a layer or a piece at a time.
        seen = torch.zeros(self.num_blocks + 1, dtype=torch.uint8, device=device)
        measured, listed, said = torch.zeros_like(self.usage_counts), 0, 0
        for layer, heads in enumerate(self.page_table):
            for pages in heads.nonzero()[:, 0].split(_AUDIT_PIECE):
                used, blocks, measure = self._audit_records(layer, pages, bad)
                measured += measure
                listed, said = listed + used.numel(), said + blocks
                _count(seen, used)
        for free in self.ring.free_pieces(16 * _AUDIT_PIECE):
            _count(seen, free)
        problems = [f"{count} {what}" for what, count in bad.items() if count]
        if listed != said:
            problems.append("block lists and block counts disagree")
        if lost := int((seen[1:] == 0).sum()):
            problems.append(f"{lost} blocks are lost: neither free nor held by a record")
        if twice := int((seen[1:] > 1).sum()):
            problems.append(f"{twice} blocks are both free and held, or held twice")
        running, counted = (Usage(*counts[:_HELD].tolist()) for counts in (self.usage_counts, measured))
        if running != counted:
            problems.append(f"running usage {running} differs from the headers' {counted}")
        return problems

    def _audit_records(self, layer: int, pages: Tensor, bad: dict[str, int]) -> tuple[Tensor, int, Tensor]:
        """Blocks that the records of a layer's pages list, how many they say they have, and what they hold."""
        lay, heads = self.layout, self.page_table[layer, pages].long()
        header = self._headers(heads)
        wrong = (
            header.page != pages,
            header.layer != layer,
            self.blocks.view(torch.int32)[heads, L.W_MAGIC] != L.MAGIC,
            lay.level_bytes(header.counts, header.level.long()) != header.nbytes,
        )
        for what, which in zip(_AUDITED, wrong, strict=True):
            bad[what] += int(which.sum())
        used = self._lists(heads)
        return used[used != 0], int(header.blocks.sum()), self._measure(header)

    def _lists(self, heads: Tensor) -> Tensor:
        start = self.layout.list_word
        return self.blocks.view(torch.int32)[:, start : start + self.layout.max_blocks][heads]
