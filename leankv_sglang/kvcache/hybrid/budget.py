"""What one prefill pass may admit into compressed pages and raw windows together."""

from __future__ import annotations

import math
from typing import Any

from sglang.srt.mem_cache.prefill_budget import SWAPrefillBudget

from leankv_sglang.kvcache.prefill_budget import LedgerBudget


class HybridBudget(LedgerBudget, SWAPrefillBudget):
    """Our budget for full layers, SGLang's for windows: a request has to fit both."""

    def check_prefill(self, *, chunk_limit: int | None, **asked: Any) -> tuple[bool, int | None]:
        """Whether a request may be admitted, and the most of it that may be prefilled now."""
        fits, limit = LedgerBudget.check_prefill(self, chunk_limit=chunk_limit, **asked)
        if not fits:
            return False, None
        windows: tuple[bool, int | None] = SWAPrefillBudget.check_prefill(
            self, chunk_limit=limit, **(asked | {"total_tokens": -math.inf})
        )
        return windows

    def available_chunk_tokens(self, chunk_limit: int) -> int | None:
        """Tokens that a prompt already begun may go on with; None makes it wait for others to end."""
        most = LedgerBudget.available_chunk_tokens(self, chunk_limit)
        if most is None:
            return None
        most = min(most, self._floor_paged(self.remaining_swa - self.page_size))
        return most if most > 0 else None

    def reserve(
        self, extend_input_len: int, max_new_tokens: int, *, chunk_limit: int | None = None, **how: Any
    ) -> None:
        """Charge an admitted request."""
        LedgerBudget.reserve(self, extend_input_len, max_new_tokens, chunk_limit=chunk_limit, **how)
        tokens = self.ceil_paged_tokens(extend_input_len)
        self.swa_offset += self.swa_tokens(tokens, max_new_tokens, chunk_limit=chunk_limit)
