"""What a prompt would hit, where that ends and why; reads only."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str

from leankv_kernels.layout import LEVEL_BASE, LEVEL_FAR, LEVEL_NEAR
from leankv_sglang.compression.request_params import user_salt
from leankv_sglang.kvcache.tree.lookup import Lookup
from leankv_sglang.observability.live.scheduler.requests_seen import accuracy_under, seen

WHOLE, SHORT, NOT_CACHED = "whole_prompt", "shorter_than_a_page", "not_cached"
TRIMMED, DEMOTED, WINDOW = "trimmed", "demoted", "window"
OTHER_ACCURACY, OTHER_SALT = "other_accuracy", "other_salt"
_PIECE = 128
"""First nodes of other prompts that are compared at a time."""


class Prober:
    """Answers one probe.

    Args:
        cache: our radix cache.
        tokens: of the prompt.
        extra_key, cache_salt: of the request that would follow, the accuracy in the latter.
    """

    def __init__(self, cache: Any, tokens: array[int], extra_key: str | None, cache_salt: str | None) -> None:
        self._cache, self._component = cache, cache.paged
        self._tokens, self._extra_key, self._salt = tokens, extra_key, cache_salt or None
        self._page: int = self._component.page_size
        # The last token is computed whatever is cached, since its output is asked for.
        self._limit = max(len(tokens) - 1, 0)
        self._reachable = self._limit // self._page * self._page

    def answer(self, emit: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """The task; emits the answer."""
        found = self._look_up(self._extra_key, self._salt)
        held = len(found.pages) * self._page
        host, store = self._beyond(found)
        body = self._body(found, host, store)
        yield
        elsewhere = list[dict[str, Any]]()
        if body["hit_tokens"] < self._reachable:
            yield from self._elsewhere(elsewhere)
        body["ends_because"] = self._reason(found, held, body["hit_tokens"], elsewhere)
        body["elsewhere"] = elsewhere
        emit(body)

    def _look_up(self, extra_key: str | None, salt: str | None) -> Lookup:
        key = RadixKey(self._tokens, extra_key, limit=self._limit, cache_salt=salt)
        found: Lookup = self._component.look_up(key)
        return found

    def _body(self, found: Lookup, host: int, store: int) -> dict[str, Any]:
        component, pool, page = self._component, self._component.pool, self._page
        pages = found.pages[: found.hit // page]
        level, hit = component.ledger.level[pages], found.hit + (host + store) * page
        missing = len(self._tokens) - hit
        units = missing * component.ledger.mean_price(LEVEL_NEAR)
        rate = seen.prefill_rate
        return {
            "prompt_tokens": len(self._tokens),
            "page_size": page,
            "accuracy": accuracy_under(self._salt, pool.config),
            "hit_tokens": hit,
            "hit_from": {"device": found.hit, "host": host * page, "storage": store * page},
            "held_tokens": len(found.pages) * page,
            "bytes": pool.bytes_of_pages(pages),
            "pages": {
                "whole": int((level == LEVEL_NEAR).sum()),
                "trimmed": int((level == LEVEL_FAR).sum()),
                "demoted": int((level == LEVEL_BASE).sum()),
            },
            "to_compute": {
                "tokens": missing,
                "seconds": missing / rate if rate else None,
                "bytes": round(units * component.ledger.worst_blocks * pool.layout.block_bytes / page),
            },
        }

    def _beyond(self, found: Lookup) -> tuple[int, int]:
        """Pages behind a hit that would be loaded from host memory and from the store, by this rank."""
        hit = found.hit
        if self._cache.linker is None or hit >= self._reachable:
            return 0, 0
        last = None
        if hit:
            if found.last is None or not (hashes := found.last.hash_value):
                return 0, 0
            before = hit - self._page * self._component.start(found.last)
            last = hashes[before // self._page - 1]
        tail = RadixKey(self._tokens[hit : self._reachable], self._extra_key, cache_salt=self._salt)
        counts: tuple[int, int] = self._cache.linker.cache_linker.would_load(
            get_storage_hash_str(tail, last, page_size=self._page)
        )
        return counts

    def _elsewhere(self, found: list[dict[str, Any]]) -> Iterator[None]:
        """What other accuracies and salts hold of the same tokens, the most of each kind."""
        first, mine = self._tokens[: self._page], (self._extra_key, self._salt)
        best: dict[tuple[bool, str], int] = {}
        children = list(self._cache.tree_core.root_node.children.values())
        for at in range(0, len(children), _PIECE):
            for child in children[at : at + _PIECE]:
                key = child.key
                other = (key.extra_key, key.cache_salt)
                if other == mine or key.token_ids[: self._page] != first:
                    continue
                hit = self._look_up(*other).hit
                config = self._component.pool.config
                same = other[0] == mine[0] and user_salt(other[1]) == user_salt(mine[1])
                kind = same, accuracy_under(other[1], config)
                best[kind] = max(best.get(kind, 0), hit)
            yield
        found += [{"same_salt": kind[0], "accuracy": kind[1], "hit_tokens": hit} for kind, hit in sorted(best.items())]

    def _reason(self, found: Lookup, held: int, hit: int, elsewhere: list[dict[str, Any]]) -> str:
        if hit == self._reachable:
            return WHOLE if hit else SHORT
        if hit < held:
            if found.legal > hit:
                return WINDOW
            # What stands in the way of the next boundary.
            level = self._component.ledger.level[found.pages]
            strict = self._component.strict
            return DEMOTED if strict and bool(np.any(level[: hit // self._page + 1] == LEVEL_BASE)) else TRIMMED
        longer = [other for other in elsewhere if other["hit_tokens"] > hit]
        if any(other["same_salt"] for other in longer):
            return OTHER_ACCURACY
        return OTHER_SALT if longer else NOT_CACHED
