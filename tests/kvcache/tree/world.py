"""A scheduler in miniature around the real pool, allocator and tree: requests come, hit, grow, finish and are dropped.

What a page holds is a function of the tokens up to its end, as the read rule makes it, so every read can be checked.
"""

from __future__ import annotations

import random
from array import array
from typing import Any

import torch
from sglang.srt.managers.schedule_batch import FINISH_LENGTH, Req
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InitLoadBackParams, MatchPrefixParams
from sglang.srt.mem_cache.cache_init_params import CacheInitParams
from sglang.srt.mem_cache.memory_pool import ReqToTokenPool
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.sampling.sampling_params import SamplingParams

from leankv_kernels.layout import LEVEL_BASE
from leankv_kernels.reference.record import View, decode, encode
from leankv_sglang.kvcache.allocator import LeanKVAllocator
from leankv_sglang.kvcache.commit_log import CommitLog
from leankv_sglang.kvcache.pool import LeanKVPool
from leankv_sglang.kvcache.tree.radix_cache import LeanKVRadixCache
from tests.kvcache.late import LateCopies

PAGE, HEADS, DIM, LAYERS, ROWS, CONTEXT = 16, 2, 32, 2, 9, 1024


class World:
    """Pool, allocator, tree and running requests; the configuration comes from the environment.

    With ``late`` copies a forward's counts arrive with the next forward, as from a GPU.
    """

    v_head_dim = DIM

    def __init__(
        self,
        pages: int,
        policy: str = "lru",
        seed: int = 0,
        tiers: tuple[float, float] = (0.3, 0.3),
        late: LateCopies | None = None,
        tree: type[LeanKVRadixCache] = LeanKVRadixCache,
    ) -> None:
        self.late = late
        self.rows = self.make_rows()
        self.pool, self.allocator = self.make_pools(pages * PAGE)
        if late is not None:
            self.pool.commits = CommitLog(self.pool.store, self.pool.ledger, self.pool.ops, late)
        self.cache = tree(
            CacheInitParams(
                disable=False,
                req_to_token_pool=self.rows,
                token_to_kv_pool_allocator=self.allocator,
                page_size=PAGE,
                eviction_policy=policy,
                **self.tree_params(),
            )
        )
        self.page_rows = self.pool.mirror_rows(self.rows)
        self.random = random.Random(seed)
        self.tiers = tiers
        self.records: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.running: list[Any] = []
        self.hit_tokens = self.asked_tokens = self.loaded_tokens = self.rid = 0

    # ---- what a world of another kind of model does otherwise ----

    def make_pools(self, units: int) -> tuple[LeanKVPool, Any]:
        """The pool of pages, and SGLang's allocator."""
        pool = LeanKVPool(units, PAGE, torch.bfloat16, HEADS, DIM, LAYERS, "cpu", False, v_head_dim=self.v_head_dim)
        return pool, LeanKVAllocator(units, PAGE, torch.bfloat16, "cpu", pool, need_sort=False)

    def make_rows(self) -> ReqToTokenPool:
        """SGLang's table of request rows."""
        return ReqToTokenPool(size=ROWS, max_context_len=CONTEXT, device="cpu", enable_memory_saver=False)

    def tree_params(self) -> dict[str, Any]:
        """What the tree is told of layers."""
        return {"tree_components": (ComponentType.FULL,)}

    def begun(self, req: Any, tokens: list[int]) -> None:
        """A request has a row, and a hit of these tokens."""

    def dropped(self, req: Any) -> None:
        """A request gives up what it has beside pages."""

    def written(self, req: Any, tokens: list[int], start: int) -> None:
        """A forward over ``tokens[start:]`` has slots for them."""

    # ---- what pages hold ----

    def records_of(self, ends: list[list[int]], layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The records of the last pages of these prefixes, and their lengths."""
        seeds = [hash((tuple(tokens), layer)) & 0x7FFFFFFF for tokens in ends]
        # A path is read over and over, and encoding takes longer than all else here, least for many pages at once.
        if new := [seed for seed in dict.fromkeys(seeds) if seed not in self.records]:
            key, value, tiers = (torch.stack(parts) for parts in zip(*map(self._drawn, new), strict=True))
            encoded = encode(key, value, tiers, self.pool.layout)
            self.records |= zip(new, zip(*(x.split(1) for x in encoded), strict=True), strict=True)
        records, lengths = zip(*(self.records[seed] for seed in seeds), strict=True)
        return torch.cat(records), torch.cat(lengths)

    def _drawn(self, seed: int) -> tuple[torch.Tensor, ...]:
        source = torch.Generator().manual_seed(seed)
        dims = DIM, self.v_head_dim
        key, value = (torch.randn(HEADS, PAGE, dim, generator=source, dtype=torch.float64) for dim in dims)
        chance = torch.rand(HEADS, PAGE, generator=source)
        low, pruned = self.tiers
        tiers = 2 - (chance < low + pruned).long() - (chance < pruned).long()
        return key, value, tiers.to(torch.uint8)

    def commit(self, tokens: list[int], start: int, row: int) -> None:
        """What a forward over ``tokens[start:]`` leaves behind: records of the pages it fills, once drained."""
        self.pool.drain()
        if self.late is not None:
            self.late.arrive()
        first, last = start // PAGE, len(tokens) // PAGE
        if first == last:
            return
        slots = self.rows.req_to_token[row, first * PAGE : last * PAGE : PAGE].long()
        pages = slots // PAGE
        for layer in range(LAYERS):
            records, lengths = self.records_of([tokens[: (i + 1) * PAGE] for i in range(first, last)], layer)
            self.pool.store.write(layer, pages, records, lengths)
        self.pool.commits.add(pages, pages.numpy())
        self.pool.version += 1

    def check_reads(self, req: Any) -> None:
        """Every page before a request's own says what it must: its near pages near, those before far."""
        tokens = req.full_untruncated_fill_ids.tolist()
        own = len(tokens) // PAGE
        pages = self.rows.req_to_token[req.kv.req_pool_idx, : own * PAGE : PAGE].long() // PAGE
        self.pool.settle()
        self.pool.drain()
        near = torch.arange(own) >= own - self.pool.config.near_pages
        for layer in range(LAYERS):
            got = decode(self.pool.store.gather(layer, pages), self.pool.layout, near & self.pool.layout.near)
            records, _ = self.records_of([tokens[: (i + 1) * PAGE] for i in range(own)], layer)
            want = decode(records, self.pool.layout, near & self.pool.layout.near)
            assert_same(got, want)

    # ---- the life of a request ----

    def admit(self, tokens: list[int], chunk: int | None = None) -> bool:
        """Match, lock, allocate, prefill (in chunks) and checkpoint; False where memory does not suffice."""
        free_rows = ROWS - 1 - len(self.running)
        if not free_rows:
            return False
        req = Req(str(self.rid), "", array("q", tokens), SamplingParams(temperature=0, max_new_tokens=64))
        self.rid += 1
        key = RadixKey(req.origin_input_ids[: len(tokens) - 1], None)
        looked_up = self.cache.paged.look_up(key)
        match = self.cache.match_prefix(MatchPrefixParams(key=key, req=req, cow_mamba=self.cache.supports_mamba()))
        assert looked_up.hit == match.device_prefix_len
        req.prefix_len, req.last_node = match.device_prefix_len, match.last_device_node
        req.lock = self.cache.lock(req.last_node)
        req.kv.cache_protected_len = req.prefix_len
        if match.host_hit_length:
            asked = InitLoadBackParams(match.best_match_node, match.host_hit_length, req=req)
            loaded, req.last_node = self.cache.init_load_back(asked)
            assert loaded in (0, match.host_hit_length)
            req.prefix_len += loaded
            self.loaded_tokens += loaded
        hit = req.prefix_len
        prefix = self.cache.prefix_device_indices(req)
        assert len(prefix) == hit
        self.page_rows.forget(self.rows.alloc([req]))
        self.page_rows.begin([req])
        self.begun(req, tokens[:hit])
        self.rows.write((req.kv.req_pool_idx, slice(0, hit)), prefix.int())
        req.kv.kv_allocated_len = req.kv.kv_committed_len = hit
        self.running.append(req)
        self.asked_tokens += len(tokens)
        ends = [tokens[:end] for end in range(PAGE, len(tokens) + 1, PAGE)]
        for layer in range(LAYERS if ends else 0):
            self.records_of(ends, layer)
        done = hit
        while done < len(tokens):
            end = min(len(tokens), done + (chunk or len(tokens)))
            if not self._extend(req, tokens, done, end):
                self.drop(req)
                return False
            done = end
        self.hit_tokens += hit
        self.check_reads(req)
        return True

    def _extend(self, req: Any, tokens: list[int], start: int, end: int) -> bool:
        pages = -(-end // PAGE) - -(-start // PAGE)
        self.allocator.evict_to_free_tokens(self.cache, end - start + PAGE)
        self.pool.settle()
        if pages * PAGE > self.allocator.available_size():
            return False
        row = req.kv.req_pool_idx
        last = self.rows.req_to_token[row, start - 1] if start else torch.tensor(-1)
        one = [torch.tensor([x]) for x in (start, end)]
        slots = self.allocator.alloc_extend(one[0], one[0], one[1], one[1], last.long()[None], end - start)
        assert slots is not None
        self.rows.write((row, slice(start, end)), slots.int())
        self.written(req, tokens[:end], start)
        self.page_rows.extended(torch.tensor([row]))
        req.full_untruncated_fill_ids = array("q", tokens[:end])
        req.kv.kv_committed_len = req.kv.kv_allocated_len = end
        if self.cache.linker is not None:
            self.cache.ready_to_load_host_cache()
        self.commit(tokens[:end], start, row)
        assert not self.cache.finish_external_linker_loads([req])
        self.cache.checkpoint(req, up_to=end)
        if self.cache.linker is not None:
            self.cache.check_hicache_events()
        return True

    def decode(self, req: Any) -> bool:
        """One more token; False where memory does not suffice."""
        tokens = req.full_untruncated_fill_ids.tolist()
        if len(tokens) + 1 >= CONTEXT or not self.allocator.check_decode_capacity(
            num_tokens=PAGE if len(tokens) % PAGE == 0 else 0, tree_cache=self.cache
        ):
            return False
        length = torch.tensor([len(tokens) + 1])
        row = req.kv.req_pool_idx
        slots = self.allocator.alloc_decode(length, length, self.rows.req_to_token[row, len(tokens) - 1].long()[None])
        assert slots is not None
        self.rows.write((row, slice(len(tokens), len(tokens) + 1)), slots.int())
        self.page_rows.extended(torch.tensor([row]))
        tokens.append(self.random.randrange(3))
        req.output_ids.append(tokens[-1])
        self.written(req, tokens, len(tokens) - 1)
        req.full_untruncated_fill_ids = array("q", tokens)
        req.kv.kv_committed_len = req.kv.kv_allocated_len = len(tokens)
        self.commit(tokens, len(tokens) - 1, row)
        return True

    def finish(self, req: Any) -> None:
        """The tree takes prompt and output over."""
        req.finished_reason = FINISH_LENGTH(length=0)
        self.cache.checkpoint(req, up_to=req.kv.kv_committed_len)
        self.drop(req)
        if self.cache.linker is not None:
            self.cache.check_hicache_events()

    def drop(self, req: Any) -> None:
        """An abort or a retraction: what the tree does not own is freed."""
        if self.cache.linker is not None:
            self.cache.linker.release_request(req.rid)
        self.cache.free_kv_row(req.kv, [(req.kv.cache_protected_len, req.kv.kv_allocated_len)])
        self.cache.unlock(req.lock)
        self.dropped(req)
        self.rows.free(req)
        self.running.remove(req)

    # ---- checks ----

    def private_units(self) -> int:
        """Units of pages that running requests hold outside the tree."""
        total = 0
        for req in self.running:
            row = self.rows.req_to_token[req.kv.req_pool_idx]
            slots = row[req.kv.cache_protected_len : req.kv.kv_allocated_len : PAGE].numpy()
            total += int(self.pool.ledger.price[slots // PAGE].sum())
        return total

    def check(self) -> None:
        """Leak identity, books, blocks and the tree's own check."""
        self.pool.settle()
        held = self.cache.evictable_size() + self.cache.protected_size() + self.private_units()
        assert self.allocator.available_size() + held == self.pool.ledger.units
        self.cache.sanity_check()
        if problems := self.pool.audit():
            raise AssertionError("; ".join(problems))

    def evict(self, units: int) -> int:
        """Ask for memory back."""
        return self.cache.evict(EvictParams(num_tokens=units)).num_tokens_evicted

    def demoted(self) -> int:
        """Pages in the tree without refinement."""
        ledger = self.pool.ledger
        return int(((ledger.level == LEVEL_BASE) & (ledger.price > 0)).sum())


def assert_same(got: View, want: View) -> None:
    """Both views say the same at every token that is read."""
    assert torch.equal(got.valid, want.valid)
    assert torch.equal(got.keys(), want.keys())
    assert torch.equal(got.values(), want.values())
