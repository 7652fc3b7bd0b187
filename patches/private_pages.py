"""Targets: ``SchedulerInvariantChecker._get_total_uncached_sizes`` and
``SchedulerPoolStatsObserver.session_held_tokens`` of sglang 0.5.23.

Reason: SGLang's leak checks, while busy (SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY) and at idle, count what requests
and streaming sessions hold outside the tree in tokens; a committed page of ours costs less than its tokens. Hooks count
the same rows at the ledger's prices, page by page, so that the checks still mean something.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from leankv_patches import hook

_COMPONENTS = "sglang.srt.managers.scheduler_components"
TARGET = f"{_COMPONENTS}.invariant_checker.SchedulerInvariantChecker._get_total_uncached_sizes"
SESSIONS = f"{_COMPONENTS}.pool_stats_observer.SchedulerPoolStatsObserver.session_held_tokens"


def _units(ledger: Any, owner: Any, records: Iterable[Any], page: int) -> int:
    """Units of the pages that SGLang's KV records hold beyond what the tree protects."""
    total, rows = 0, owner.req_to_token_pool.req_to_token
    for kv in records:
        slots = rows[kv.req_pool_idx][kv.cache_protected_len : kv.kv_allocated_len : page].cpu().numpy()
        total += int(ledger.price[slots // page].sum())
    return total


def private_units(original: Callable[..., Any], checker: Any) -> tuple[int, int]:
    """Units of the pages that requests hold outside the tree, and tokens of the sliding windows, as SGLang has them."""
    ledger = getattr(checker.token_to_kv_pool_allocator, "ledger", None)
    if ledger is None:
        return original(checker)
    records = [req.kv for req in checker._requests_owning_rows()]
    return _units(ledger, checker, records, checker.page_size), original(checker)[1]


def session_units(original: Callable[..., int], observer: Any) -> int:
    """Units of the pages that streaming sessions hold outside the tree."""
    ledger = getattr(observer.token_to_kv_pool_allocator, "ledger", None)
    if ledger is None:
        return original(observer)
    return _units(ledger, observer, observer._session_kv_rows(), observer.tree_cache.page_size)


def install() -> None:
    """Register the hooks. Call while sglang loads its plugins."""
    hook.register(TARGET, private_units, "AROUND")
    hook.register(SESSIONS, session_units, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take, else None."""
    return hook.problem(TARGET, "the leak check") or hook.problem(SESSIONS, "what sessions hold", ["self"])
