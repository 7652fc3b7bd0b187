"""The KV pool SGLang sees: logical pages over the record store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from torch import Tensor

from leankv_kernels import Plan, RecordStore
from leankv_kernels.layout import LEVEL_FAR, LEVEL_NEAR
from leankv_kernels.store import Usage
from leankv_sglang.compression.build import kernels_for, make_layout
from leankv_sglang.compression.commit_memory import commit_bytes
from leankv_sglang.compression.thresholds import rank_heads, threshold_table
from leankv_sglang.config import Alphas, required_config
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.commit_log import CommitLog
from leankv_sglang.kvcache.deferred import DeferredWork, FilledPages
from leankv_sglang.kvcache.ledger import Ledger, Pages
from leankv_sglang.kvcache.open_pages import OpenPages
from leankv_sglang.kvcache.page_rows import PageRows, SlotReader
from leankv_sglang.kvcache.places import spare_pages
from leankv_sglang.kvcache.sizing import PAGE_TABLE_ENTRY, memory_line, model_dtype_bytes_per_token, pages_committed

logger = logging.getLogger(__name__)

_current: LeanKVPool | None = None


def current_pool() -> LeanKVPool | None:
    """The pool of this process, None where none was built."""
    return _current


@dataclass
class PageCounts:
    """What has happened to pages since the start."""

    committed: int = 0
    trimmed: int = 0
    demoted: int = 0
    healed: int = 0
    evicted: int = 0


class LeanKVPool(MHATokenToKVPool):
    """Compressed pages in place of SGLang's token pool.

    Slots are logical: ``slot // page_size`` is a page id, and nothing but this pool and the attention backend knows
    where its bytes are. A page holds a record per layer once a forward has written its last token; before that its
    tokens are raw, in the open page of the request's row.
    """

    store: RecordStore
    open_pages: OpenPages
    dtype: torch.dtype

    def _create_buffers(self) -> None:
        global _current
        self.config = required_config()
        if self.size % self.page_size:
            self.size -= self.size % self.page_size
        self.model_dtype: torch.dtype = self.dtype
        # Some models fuse RoPE with a raw store into the pool when it claims to hold bfloat16.
        self.dtype = torch.uint8
        self.layout = make_layout(self.config, self.page_size, self.head_num, self.head_dim, self.v_head_dim)
        worst = self.layer_num * self.layout.max_blocks
        self.ledger = Ledger(self.size, self.page_size, worst)
        blocks = self.size // self.page_size * worst
        self.store = RecordStore(self.layout, self.layer_num, self.ledger.num_pages, self.device, blocks)
        self.alphas = self.thresholds(self.config.alphas)
        self.ops = kernels_for(self.device, self.config, self.layout)
        self.deferred = DeferredWork(self.store, self.ops)
        self.commits = CommitLog(self.store, self.ledger, self.ops)
        self.counts = PageCounts()
        self.slot_reader = SlotReader(self.page_size)
        self.page_rows: PageRows | None = None
        self.audits: list[Callable[[], list[str]]] = []
        """What else is checked at idle."""
        self.left_open: Callable[[], Pages] | None = None
        """Pages that are held at idle without being full; the tree sets it."""
        self._filled: FilledPages | None = None
        self.committer: Callable[[FilledPages], None] | None = None
        """Commits what decode steps have filled; set by the attention backend."""
        # Changes whenever records do.
        self.version = 0
        # What the base class's own methods look at.
        self.k_buffer: list[Tensor] = []
        self.v_buffer: list[Tensor] = []
        self.k_scale_buffer = self.v_scale_buffer = None
        _current = self

    def of_rank(self, table: Tensor) -> Tensor:
        """The columns of a table ``[layers, all KV heads, ...]`` that this rank holds."""
        return rank_heads(table, self.head_num, filled_up=torch.device(self.device).type == "cpu")

    def thresholds(self, alphas: Alphas) -> Tensor:
        """Thresholds of every layer and KV head of this rank, float64 ``[layers, 3, H]``, on the device.

        Raises:
            LeanKVError: where a table is not of the model's shape.
        """
        table = threshold_table(alphas, self.layer_num, self.head_num, self.of_rank)
        return table.to(self.device)

    def attach_rows(self, num_rows: int, num_query_heads: int, most_tokens: int) -> None:
        """Allocate one raw open page per request row (row 0 is SGLang's padding row) for prefills of ``most_tokens``,
        settle the kernels, which may not take so many heads (LeanKVError), and say what memory went to."""
        group = num_query_heads // self.head_num
        self.ops = self.deferred.ops = self.commits.ops = kernels_for(self.device, self.config, self.layout, group)
        heads = (self.head_num, self.head_dim, num_query_heads)
        how = self.model_dtype, torch.device(self.device), self.ops.write_tokens
        spare = spare_pages(most_tokens, num_rows, self.page_size)
        self.open_pages = OpenPages(
            self.layer_num, num_rows, self.page_size, *heads, *how, spare, v_head_dim=self.v_head_dim
        )
        pages = pages_committed(self.layer_num, num_rows, most_tokens, self.page_size)
        most = commit_bytes(self.ops, self.layout, num_query_heads, self.model_dtype.itemsize, pages)
        logger.info(memory_line(self.store, self.open_pages, most))

    def mirror_rows(self, req_to_token_pool: Any) -> PageRows:
        """The host's mirror of SGLang's request rows; a pool serves one ``ReqToTokenPool``."""
        rows: PageRows | None = getattr(req_to_token_pool, "leankv_rows", None)
        if rows is None:
            # Where patches.row_alloc looks for whom to tell.
            rows = req_to_token_pool.leankv_rows = PageRows(req_to_token_pool.req_to_token, self.slot_reader)
            self.audits.append(rows.audit)
        self.page_rows = rows
        return rows

    def note_commits(self, plan: Plan, ids: Pages) -> None:
        """Take note of the pages that a forward has committed in every layer, the last thing it does.

        Args:
            plan: the forward's plan.
            ids: logical ids of the pages of ``plan.full``, on the host.
        """
        if len(ids):
            self.commits.add(plan.own_pages.index_select(0, plan.full), ids)
            self.counts.committed += len(ids)
            self.version += 1

    def commit_later(self, filled: FilledPages, ids: Pages) -> None:
        """Take note of pages that a decode step fills, which the next :meth:`drain` commits.

        Args:
            filled: what the commit needs, on the device.
            ids: their logical ids, on the host.
        """
        self._filled = filled
        self.commits.announce(ids)
        self.counts.committed += len(ids)

    def settle(self) -> None:
        """True up the pages whose commits are done; the scheduler's side calls it before it counts."""
        self.commits.settle()

    def free(self, pages: Pages) -> None:
        """Free pages: their units at once, their blocks in order with the forwards already launched, one of which may
        still commit such a page."""
        self.ledger.close(pages)
        self.deferred.free(pages)

    def cut(self, pages: Pages, level: int) -> int:
        """Cut settled pages to a level, in the same order; returns the units gained."""
        if level == LEVEL_FAR:
            self.counts.trimmed += len(pages)
        else:
            self.counts.demoted += len(pages)
        self.deferred.cut(pages, level)
        return self.ledger.cut(pages, level)

    def swap(self, a: Pages, b: Pages) -> None:
        """Give cut pages ``a`` the fuller records of pages ``b`` and these theirs, in the same order; all committed,
        ``a`` settled."""
        self.counts.healed += len(a)
        self.deferred.swap(a, b)
        self.commits.swap(a, b)
        self.ledger.swap(a, b)

    def drain(self) -> None:
        """Commit what the last forward has filled, then carry out what was ordered since: at the start of a forward,
        and at idle times."""
        filled, self._filled, counts = self._filled, None, None
        if filled is not None:
            assert self.committer is not None
            self.committer(filled)
            counts = self.ops.count_pages(self.store, filled.pages)
        moved = self.deferred.run()
        if counts is not None:
            self.commits.send(counts)
        elif moved:
            self.commits.note_usage()
        self.version += moved or counts is not None

    @property
    def was_cut(self) -> bool:
        """Whether any page was ever cut."""
        return bool(self.counts.trimmed + self.counts.demoted)

    def check_near_pages(self, ids: Pages) -> None:
        """Raise :class:`LeanKVError` if a page that a forward reads near is not held in full."""
        if (self.ledger.level[ids] < LEVEL_NEAR).any():
            raise LeanKVError(
                "A request reads a page near whose near part was trimmed; this is a fault of LeanKV's cache, "
                "please report which flags and which kind of request led here."
            )

    def clear(self) -> None:
        """Forget every page."""
        self._filled = None
        self.deferred.clear()
        self.commits.clear()
        self.ledger.reset()
        self.store.clear()
        self.version += 1

    def bytes_of_pages(self, pages: Pages, trimmed: bool = False) -> int:
        """Physical bytes of the records of pages, with their table entries, by what the ledger was told: the worst for
        what a forward under way has committed, nothing for pages not committed. Trimmed: without near parts."""
        self.commits.note_arrived()
        blocks = self.ledger.blocks_held(pages, LEVEL_FAR if trimmed else LEVEL_NEAR)
        records = int(np.count_nonzero(blocks)) * self.layer_num
        return int(blocks.sum()) * self.layout.block_bytes + records * PAGE_TABLE_ENTRY

    def model_bytes(self, tokens: int) -> int:
        """Bytes that so many tokens would take in the model's dtype."""
        return tokens * model_dtype_bytes_per_token(self.layout, self.layer_num, self.model_dtype.itemsize)

    def tier_shares(self, pages: Pages) -> dict[str, float]:
        """Shares of the tiers in committed pages, over all layers and heads of this rank, by what the ledger was told;
        nothing where it was told nothing yet."""
        self.commits.note_arrived()
        known, tokens = self.ledger.tokens_held(pages)
        if not known:
            return {}
        high, mid, low = (tokens / (known * self.page_size * self.layer_num * self.head_num)).tolist()
        shares = {"high": high, **({"mid": mid} if self.config.mid else {}), "low": low}
        return {**shares, "pruned": 1.0 - high - mid - low}

    def usage(self) -> Usage:
        """What the records hold: now on a CPU, a forward ago on a GPU, which is not waited for."""
        return self.commits.usage()

    def audit(self) -> list[str]:
        """Check of blocks against records and of prices against blocks, one sentence per violation; for idle times."""
        self.drain()
        self.settle()
        problems = self.ledger.audit() + self.store.audit()
        for audit in self.audits:
            problems += audit()
        held = np.flatnonzero((self.ledger.price > 0) & self.ledger.settled)
        blocks = self.store.level_blocks(torch.from_numpy(held).to(self.device)).cpu().numpy()
        # Beside other ranks a page may cost more than its blocks here.
        off = self.ledger.price[held] - self.ledger.units_of(blocks[:, 2])
        if bad := int(((off < 0) | (off > 0) & (self.commits.group is None)).sum()):
            problems.append(f"{bad} pages cost another number of units than their blocks say")
        return problems

    def get_kv_size_bytes(self) -> tuple[int, int]:
        """Physical bytes of the store, where SGLang counts keys; values lie in the same blocks."""
        return self.store.nbytes(), 0

    def _clear_buffers(self) -> None:
        del self.store
        self.__dict__.pop("open_pages", None)  # a pool that no backend was built for has none

    def finalize_backing(self, config: Any) -> NoReturn:
        """Refused: the pool is sized once."""
        raise LeanKVError("LeanKV sizes its pool once; set SGLANG_ENABLE_POST_CAPTURE_KV_SIZING=0.")

    def _refuse(self, what: str) -> NoReturn:
        raise LeanKVError(f"{what} was asked of the LeanKV pool, whose pages hold no raw tokens; report this mode.")

    def get_kv_buffer(self, layer_id: int) -> NoReturn:
        """Refused: there are no raw buffers."""
        self._refuse("A raw KV buffer")

    get_key_buffer = get_value_buffer = get_kv_buffer

    def set_kv_buffer(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: only the attention backend writes pages."""
        self._refuse("A raw write")

    def move_kv_cache(self, tgt_loc: Tensor, src_loc: Tensor) -> NoReturn:
        """Refused: tokens of a page do not move."""
        self._refuse("A move of tokens")

    def get_cpu_copy(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: host copies are not supported."""
        self._refuse("A host copy")

    load_cpu_copy = get_cpu_copy
