"""Target: ``SchedulerInvariantChecker._get_total_uncached_sizes`` of sglang 0.5.23.

Reason: SGLang's leak check while busy (SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY) counts what requests hold outside
the tree in tokens; a committed page of ours costs less than its tokens. A hook counts the same rows at the ledger's
prices, page by page, so that the check still means something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from leankv_patches import hook

TARGET = (
    "sglang.srt.managers.scheduler_components.invariant_checker.SchedulerInvariantChecker._get_total_uncached_sizes"
)


def private_units(original: Callable[..., Any], checker: Any) -> tuple[int, int]:
    """Units of the pages that requests hold outside the tree, and tokens of the sliding windows, as SGLang has them."""
    ledger = getattr(checker.token_to_kv_pool_allocator, "ledger", None)
    if ledger is None:
        return original(checker)
    page, total = checker.page_size, 0
    for req in checker._requests_owning_rows():
        kv = req.kv
        row = checker.req_to_token_pool.req_to_token[kv.req_pool_idx]
        slots = row[kv.cache_protected_len : kv.kv_allocated_len : page].cpu().numpy()
        total += int(ledger.price[slots // page].sum())
    return total, original(checker)[1]


def install() -> None:
    """Register the hook. Call while sglang loads its plugins."""
    hook.register(TARGET, private_units, "AROUND")


def problem() -> str | None:
    """A sentence if the hook did not take, else None."""
    return hook.problem(TARGET, "the leak check")
