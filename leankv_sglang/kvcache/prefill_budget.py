"""What one prefill pass may admit, with future tokens at the prices that pages have lately had."""

from __future__ import annotations

from typing import Any

from sglang.srt.mem_cache.prefill_budget import PrefillBudget

from leankv_kernels.layout import LEVEL_FAR, LEVEL_NEAR

SAFETY = 1.05
"""Future tokens are priced at the running mean times this."""


class LedgerBudget(PrefillBudget):
    """SGLang's budget, of two minds about a token: what it reserves now, a unit, and what it will cost in the end.

    ``current_offset`` is the former, since a page reserves its worst case until its commit. ``total_offset`` is the
    latter: prompts shrink to their far part once they are in the tree, tokens still to be decoded keep their near parts
    until their request ends. Where that proves too hopeful, SGLang retracts a request and admits fewer.
    """

    def __init__(self, allocator: Any, tree_cache: Any, *, num_mixed_decode_tokens: int = 0) -> None:
        super().__init__(allocator, tree_cache, num_mixed_decode_tokens=num_mixed_decode_tokens)
        self.prompt_price = min(SAFETY * allocator.ledger.mean_price(LEVEL_FAR), 1.0)
        self.output_price = min(SAFETY * allocator.ledger.mean_price(LEVEL_NEAR), 1.0)

    def _floor_paged(self, units: float) -> int:
        return int(units) // self.page_size * self.page_size

    def check_prefill(
        self,
        *,
        extend_input_len: int,
        total_tokens: int,
        max_new_tokens: int,
        input_tokens: int,
        swa_host_hit_length: int,
        chunk_limit: int | None,
        auxiliary_swa_host_hit_length: int = 0,
    ) -> tuple[bool, int | None]:
        """Whether a request may be admitted, and the most of it that may be prefilled now."""
        extend = self.ceil_paged_tokens(extend_input_len)
        lasting = self.prompt_price * extend_input_len + self.output_price * (total_tokens - extend_input_len)
        # With nothing else about, whatever SGLang has accepted fits, even at its worst.
        alone = self.total_offset == 0
        if lasting >= self.remaining_total and not alone:
            return False, None
        now = extend if chunk_limit is None else min(extend, self.ceil_paged_tokens(chunk_limit))
        room = self.remaining_current - self.page_size
        if now <= room:
            return True, chunk_limit
        # A prompt whose chunk does not fit even an idle pool goes in smaller ones; otherwise it waits for its turn.
        cap = self._floor_paged(room)
        if chunk_limit is None or cap <= 0 or not alone:
            return False, None
        return True, min(chunk_limit, cap)

    def prepare_load_back(
        self,
        *,
        full_tokens: int,
        extend_input_len: int,
        max_new_tokens: int,
        swa_host_hit_length: int,
        chunk_limit: int | None,
    ) -> bool:
        """Whether a prefix may be loaded beside what this pass has admitted; a request alone is never kept waiting, and
        computes what cannot be loaded."""
        prefix = full_tokens - extend_input_len - max_new_tokens - self.page_size
        now = self.ceil_paged_tokens(min(extend_input_len, chunk_limit or extend_input_len)) + self.page_size
        self.allocator.promised = int(self.current_offset) + now
        return self.total_offset == 0 or self.prompt_price * prefix + now <= self.remaining_current

    def available_chunk_tokens(self, chunk_limit: int) -> int | None:
        """Tokens that a prompt already begun may go on with; None makes it wait for others to end."""
        available = min(chunk_limit, self._floor_paged(self.remaining_current - self.page_size))
        return available if available > 0 else None

    def reserve(
        self,
        extend_input_len: int,
        max_new_tokens: int,
        *,
        extra_tokens: int = 0,
        chunk_limit: int | None = None,
        is_chunked_continuation: bool = False,
    ) -> None:
        """Charge an admitted request."""
        extend = self.ceil_paged_tokens(extend_input_len)
        self.current_offset += extend + self.page_size + extra_tokens
        output = self.page_size + extra_tokens + max_new_tokens
        self.total_offset += int(self.prompt_price * extend + self.output_price * output)
