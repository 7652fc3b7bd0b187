"""SGLang's streaming sessions over compressed pages: between two turns a session keeps its request row, with all pages
past the first prompt, which nobody else can find, and the open page that the next turn goes on with."""

from __future__ import annotations

from typing import Any

import numpy as np
from sglang.srt.session.streaming_session import StreamingSession

from leankv_sglang.kvcache.ledger import Pages


class PagedSession(StreamingSession):  # type: ignore[misc]
    """A turn goes on inside the open page only where that ends; otherwise the page is computed again."""

    def try_match_prefix(self, params: Any) -> Any:
        """What a turn finds of its session, None where it has no session or nothing is left of it.

        A turn that was retracted, or that brings no token, begins a token before the row's end. The column scores of
        its open page know that token already, so it begins with that page; where that is the first one, or windows of
        layers have slid past it, the session's pages are given up.
        """
        slot = self.find_active_slot(params.req)
        if slot is not None:
            begin, page = min(slot.kv.kv_committed_len, len(params.key)), self.cache.page_size
            if begin % page and begin != self._written(slot.kv):
                if begin < page or self.cache.supports_swa():
                    self.release_session(params.req.session.session_id)
                    return None
                slot.kv.kv_committed_len = begin - begin % page
        return super().try_match_prefix(params)

    def open_pages(self) -> Pages:
        """Pages that sessions hold without a record: they are not full."""
        page, found = self.cache.page_size, [np.empty(0, np.int64)]
        for slot in self.slots.values():
            if slot.kv.holds_kv:
                row, stop = slot.kv.req_pool_idx, -(-slot.kv.kv_allocated_len // page)
                found.append(self.cache.page_rows.of(row, stop, min(stop, self._written(slot.kv) // page)))
        return np.concatenate(found)

    def _written(self, kv: Any) -> int:
        return int(self.cache.paged.pool.open_pages.written(kv.req_pool_idx))
