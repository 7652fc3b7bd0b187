"""Admission: what must fit now at its worst, what must fit in the end at lately paid prices; nobody waits for ever."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leankv_sglang.kvcache.ledger import Ledger
from leankv_sglang.kvcache.prefill_budget import SAFETY, LedgerBudget

PAGE, WORST, PAGES = 16, 60, 40


def ledger_at(far: int, near: int) -> Ledger:
    """A ledger whose pages have lately cost so many of 60 blocks."""
    ledger = Ledger(PAGES * PAGE, PAGE, WORST)
    for _ in range(90):
        ids = np.arange(1, 31)
        ledger.open(ids)
        ledger.settle(ids, ledger.epoch[ids], np.tile([1, far, near], (30, 1)))
        ledger.close(ids)
    return ledger


def budget(ledger: Ledger, evictable: int = 0, mixed: int = 0) -> Any:
    allocator = SimpleNamespace(ledger=ledger, page_size=PAGE, available_size=lambda: ledger.free_units)
    tree = SimpleNamespace(evictable_size=lambda: evictable, supports_mamba=lambda: False)
    return LedgerBudget(allocator, tree, num_mixed_decode_tokens=mixed)


def ask(b: Any, extend: int, new: int = 0, chunk: int | None = None) -> tuple[bool, int | None]:
    answer: tuple[bool, int | None] = b.check_prefill(
        extend_input_len=extend,
        total_tokens=extend + new + PAGE,
        max_new_tokens=new,
        input_tokens=extend,
        swa_host_hit_length=0,
        chunk_limit=chunk,
    )
    return answer


def test_prices_follow_what_pages_cost_lately() -> None:
    b = budget(ledger_at(far=15, near=60))
    assert b.prompt_price == pytest.approx(SAFETY * 0.25, rel=0.01)
    assert b.output_price == 1.0
    fresh = budget(Ledger(PAGES * PAGE, PAGE, WORST))
    assert fresh.prompt_price == fresh.output_price == 1.0


def test_cheap_prompts_are_admitted_beyond_the_worst_case() -> None:
    """In chunks, each of which fits at its worst; together they would not."""
    admitted = {}
    for far in (15, 60):
        b = budget(ledger_at(far, 60))
        count = 0
        while ask(b, 20 * PAGE, chunk=2 * PAGE)[0]:
            b.reserve(2 * PAGE, 0)
            b.total_offset += int(b.prompt_price * 18 * PAGE)
            count += 1
        admitted[far] = count
    assert admitted[60] == 1
    assert admitted[15] > 4


@given(st.integers(1, (PAGES - 1) * PAGE), st.integers(0, 2000), st.sampled_from([None, 4 * PAGE, 100 * PAGE]))
def test_a_request_alone_is_always_admitted(prompt: int, new: int, chunk: int | None) -> None:
    """Whatever SGLang accepts for the pool; else it would wait for ever."""
    b = budget(Ledger(PAGES * PAGE, PAGE, WORST))
    ok, limit = ask(b, prompt, new, chunk)
    assert ok
    if chunk is not None:
        assert limit is not None
        assert limit > 0


def test_a_prompt_larger_than_what_is_free_goes_in_smaller_chunks_only_when_alone() -> None:
    ledger = Ledger(PAGES * PAGE, PAGE, WORST)
    ledger.open(np.arange(1, 31))
    alone = budget(ledger)
    assert ask(alone, 20 * PAGE, chunk=20 * PAGE) == (True, 9 * PAGE)
    busy = budget(ledger)
    busy.total_offset = 10
    assert ask(busy, 8 * PAGE, chunk=20 * PAGE)[0]
    assert not ask(busy, 20 * PAGE, chunk=20 * PAGE)[0]


def test_what_is_admitted_is_charged_twice_over() -> None:
    b = budget(ledger_at(far=15, near=60))
    now, lasting = b.remaining_current, b.remaining_total
    b.reserve(100, 50)
    assert now - b.remaining_current == 7 * PAGE + PAGE
    assert lasting - b.remaining_total == int(b.prompt_price * 7 * PAGE + 1.0 * (PAGE + 50))


def test_a_prompt_already_begun_waits_when_not_even_a_page_is_free() -> None:
    ledger = Ledger(PAGES * PAGE, PAGE, WORST)
    ledger.open(np.arange(1, PAGES - 2))
    assert budget(ledger).available_chunk_tokens(5 * PAGE) == 2 * PAGE
    assert budget(ledger, mixed=2 * PAGE).available_chunk_tokens(5 * PAGE) is None
    assert budget(ledger, evictable=20 * PAGE).available_chunk_tokens(5 * PAGE) == 5 * PAGE
