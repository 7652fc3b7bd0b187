"""The KV pool SGLang sees: logical pages over the record store, and the raw open pages of running requests."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from torch import Tensor

from leankv_kernels import Plan, RawPages, RecordLayout, RecordStore
from leankv_kernels.layout import HEADER_WORDS, W_BLOCKS
from leankv_sglang.config import LeanKVConfig, Thresholds, required_config
from leankv_sglang.errors import LeanKVError

logger = logging.getLogger(__name__)

_current: LeanKVPool | None = None


def current_pool() -> LeanKVPool | None:
    """The pool of this process, None where none was built."""
    return _current


def make_layout(config: LeanKVConfig, page_size: int, num_kv_heads: int, head_dim: int) -> RecordLayout:
    """The record layout for a model's shape.

    Raises:
        LeanKVError: when the layout cannot hold that shape.
    """
    try:
        return RecordLayout(page_size, num_kv_heads, head_dim, *config.formats, near=config.window > 0)
    except ValueError as error:
        raise LeanKVError(f"LeanKV cannot serve this model: {error}.") from error


class LeanKVPool(MHATokenToKVPool):
    """Compressed pages in place of SGLang's token pool.

    Slots are logical: ``slot // page_size`` is a page id, and nothing but this pool and the attention backend knows
    where its bytes are. A page holds a record per layer once a forward has written its last token; before that its
    tokens are raw, in the open page of the request's row.
    """

    store: RecordStore
    dtype: torch.dtype

    def _create_buffers(self) -> None:
        global _current
        self.config = required_config()
        if self.v_head_dim != self.head_dim:
            raise LeanKVError("LeanKV cannot serve this model: its values have another head_dim than its keys.")
        if self.size % self.page_size:
            self.size -= self.size % self.page_size
        self.open_dtype: torch.dtype = self.dtype
        # Some models fuse RoPE with a raw store into the pool when it claims to hold bfloat16.
        self.dtype = torch.uint8
        self.layout = make_layout(self.config, self.page_size, self.head_num, self.head_dim)
        self.store = RecordStore(self.layout, self.layer_num, self.size // self.page_size, self.device)
        self.alpha_high = self._per_head(self.config.alpha_high)
        self.alpha_low = self._per_head(self.config.alpha_low)
        self._retired: list[Tensor] = []
        self.pages_committed = 0
        # Changes whenever records do.
        self.version = 0
        self.open_key = self.open_value = self.open_scores = torch.empty(0)
        self.row_fill = torch.zeros(0, dtype=torch.int64)
        # What the base class's own methods look at.
        self.k_buffer: list[Tensor] = []
        self.v_buffer: list[Tensor] = []
        self.k_scale_buffer = self.v_scale_buffer = None
        _current = self

    def _per_head(self, value: Thresholds) -> Tensor:
        shape = (self.layer_num, self.head_num)
        table = torch.as_tensor(value, dtype=torch.float64, device=self.device)
        if table.ndim and tuple(table.shape) != shape:
            raise LeanKVError(f"The LeanKV profile has thresholds of shape {tuple(table.shape)}, the pool {shape}.")
        return table.expand(shape).contiguous()

    def attach_rows(self, num_rows: int, num_query_heads: int) -> None:
        """Allocate one raw open page per request row (row 0 is SGLang's padding row)."""
        shape = (self.layer_num, num_rows, self.page_size, self.head_num, self.head_dim)
        self.open_key = torch.zeros(shape, dtype=self.open_dtype, device=self.device)
        self.open_value = torch.zeros(shape, dtype=self.open_dtype, device=self.device)
        self.open_scores = torch.zeros(
            self.layer_num, num_rows, num_query_heads, self.page_size, dtype=torch.int32, device=self.device
        )
        self.row_fill = torch.zeros(num_rows, dtype=torch.int64)
        logger.info("LeanKV: %d open pages, %.1f MiB", num_rows, self.open_bytes() / 2**20)

    def raw_pages(self, layer: int, plan: Plan, key: Tensor, value: Tensor) -> RawPages:
        """The own pages of a forward's units with its tokens ``[T, H, D]`` written.

        Where every unit has a row of its own, as in decode, these are the rows' open pages, in place; otherwise copies,
        which ``keep_open`` takes back.
        """
        raw = RawPages(self.open_key[layer], self.open_value[layer], self.open_scores[layer], plan.rows)
        if not plan.one_unit_per_row:
            rows = plan.rows
            raw = RawPages(raw.key[rows], raw.value[rows], raw.scores[rows], plan.unit_range)
        raw.write(plan, key, value)
        return raw

    def keep_open(self, layer: int, plan: Plan, raw: RawPages) -> None:
        """Leave the pages that are not full yet, with their column scores, to their rows."""
        if not plan.one_unit_per_row and plan.open.numel():
            rows = plan.rows[plan.open]
            for kept, page in zip((self.open_key, self.open_value, self.open_scores), raw[:3], strict=True):
                kept[layer][rows] = page[plan.open]

    def retire(self, page_ids: Tensor) -> None:
        """Note pages the allocator has freed. Their blocks come back at the start of the next forward, in order with
        the forwards already launched, one of which may still commit such a page."""
        if page_ids.numel():
            self._retired.append(page_ids)

    def note_commits(self, pages: int) -> None:
        """Count the pages that a forward commits."""
        self.pages_committed += pages
        self.version += pages

    def drain(self) -> None:
        """Return the blocks of retired pages."""
        if self._retired:
            self.version += 1
            pages, self._retired = torch.cat(self._retired), []
            self.store.free(pages)

    def clear(self) -> None:
        """Forget every page."""
        self._retired.clear()
        self.store.clear()
        self.version += 1

    def open_bytes(self) -> int:
        """Bytes of the raw open pages and their column scores."""
        return sum(t.numel() * t.element_size() for t in (self.open_key, self.open_value, self.open_scores))

    def open_page_bytes(self) -> int:
        """Bytes of one row's open page and its column scores."""
        return self.open_bytes() // max(self.row_fill.numel(), 1)

    def bytes_of_pages(self, pages: Tensor) -> int:
        """Physical bytes of the records of ``pages`` int64 ``[n]``, with their table entries; asks the device."""
        table, blocks = self.store.page_table, self.store.blocks
        heads = table[:, pages].long().flatten()
        counts = blocks[heads, : 4 * HEADER_WORDS].view(torch.int32)[:, W_BLOCKS]
        return int(counts.sum()) * self.layout.block_bytes + int((heads != 0).sum()) * table.element_size()

    def audit(self) -> list[str]:
        """Byte-level check of blocks against records, one sentence per violation; for idle times."""
        self.drain()
        return self.store.audit()

    def get_kv_size_bytes(self) -> int:
        """Physical bytes of the store."""
        return self.store.nbytes()

    def _clear_buffers(self) -> None:
        del self.store, self.open_key, self.open_value, self.open_scores

    def finalize_backing(self, config: Any) -> NoReturn:
        """Refused: the pool is sized once."""
        raise LeanKVError("LeanKV sizes its pool once; set SGLANG_ENABLE_POST_CAPTURE_KV_SIZING=0.")

    def _refuse(self, what: str) -> NoReturn:
        raise LeanKVError(f"{what} was asked of the LeanKV pool, whose pages hold no raw tokens; report this mode.")

    def get_key_buffer(self, layer_id: int) -> NoReturn:
        """Refused: there is no raw key buffer."""
        self._refuse("A raw key buffer")

    def get_value_buffer(self, layer_id: int) -> NoReturn:
        """Refused: there is no raw value buffer."""
        self._refuse("A raw value buffer")

    def get_kv_buffer(self, layer_id: int) -> NoReturn:
        """Refused: there are no raw buffers."""
        self._refuse("A raw KV buffer")

    def set_kv_buffer(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: only the attention backend writes pages."""
        self._refuse("A raw write")

    def move_kv_cache(self, tgt_loc: Tensor, src_loc: Tensor) -> NoReturn:
        """Refused: tokens of a page do not move."""
        self._refuse("A move of tokens")

    def get_cpu_copy(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: host copies are not supported."""
        self._refuse("A host copy")

    def load_cpu_copy(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: host copies are not supported."""
        self._refuse("A host copy")
