"""Whole sequences for the tests of attention: model shapes, methods, chunk splits, and stores with records cut."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from leankv_kernels import Ops, Plan, RecordLayout, RecordStore, build_plan
from leankv_kernels import layout as L
from leankv_kernels.reference.record import cut, read_header
from tests.kernels.draws import (
    INTERPRETED,
    PAIRS,
    calm_rows,
    commit,
    generator,
    mids,
    small_layout,
    wild_rows,
)
from tests.kernels.driver import Driver, Method, Request, Tokens

MODEL_DTYPES = (torch.bfloat16, torch.bfloat16, torch.float16, torch.float32)
INF = float("inf")
ALPHAS = [(1.0, 0.8, 0.0), (1.2, 0.7, 0.4), (INF, 1.0, 0.7), (INF, INF, 0.7), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0)]

CAPS = (0.0, 0.0, 5.0, 50.0)
"""Of scores: none; one that draws most of them in; one that models have."""


@dataclass(frozen=True)
class Case:
    """A model's attention shape and a method."""

    method: Method
    group: int
    dtype: torch.dtype
    device: str = "cpu"

    @property
    def page(self) -> int:
        return self.method.layout.page_size

    def tokens(self, length: int, seed: int, like: Tokens | None = None) -> Tokens:
        """A sequence as a model makes it: peaked attention, keys with channels far off zero.

        Args:
            length: tokens in all.
            seed: of the tokens that are new.
            like: a sequence that it begins with.
        """
        g, lay = generator(seed), self.method.layout
        heads, width = lay.num_kv_heads, lay.head_dim
        new = length - (len(like) if like else 0)
        q = torch.randn(new, heads * self.group, width, generator=g) * 2.5
        k = torch.randn(new, heads, width, generator=g) + torch.arange(width).cos() * 3
        v = torch.randn(new, heads, lay.v_head_dim, generator=g) * 0.5
        parts = [x.to(self.device, self.dtype) for x in (q, k, v)]
        if like:
            parts = [torch.cat(pair) for pair in zip((like.q, like.k, like.v), parts, strict=True)]
        return Tokens(*parts)

    def driver(self, ops: Ops, garbage: float = float("nan")) -> Driver:
        return Driver(ops, self.method, garbage=garbage, device=self.device)

    def alone(self, ops: Ops, tokens: Tokens) -> tuple[Driver, Request]:
        """The whole sequence in one forward and alone: what every other way must equal."""
        driver = self.driver(ops)
        return driver, driver.run(driver.admit(tokens, row=1))


def random_case(rng: Random, *dtypes: torch.dtype, device: str = "cpu") -> Case:
    """Any shape, pair of tiers, near_pages and thresholds."""
    near_pages = rng.randint(0, 2)
    high_format, low_format = rng.choice(PAIRS)
    layout = RecordLayout(
        rng.choice((16, 32) if INTERPRETED else (16, 32, 64)),
        rng.randint(1, 2 if INTERPRETED else 3),
        rng.choice((64, 80) if INTERPRETED else (64, 80, 128)),
        high_format,
        low_format,
        near=near_pages > 0,
        mid=rng.choice([None, *mids(high_format, low_format)]),
        v_head_dim=rng.choice((0, 0, 64, 80)),
    )
    alphas = rng.choice(ALPHAS)
    rotation = rng.choice(("hadamard", "hadamard", "none"))
    method = Method(layout, near_pages, rotation, *alphas, cap=rng.choice(CAPS), sinks=rng.random() < 0.3)
    return Case(method, rng.randint(1, 8), rng.choice(dtypes), device)


def random_length(rng: Random, page: int, pages: int = 4) -> int:
    """Often at a page's edge."""
    pages = min(pages, 2) if INTERPRETED else pages
    edge = rng.randint(0, pages) * page + rng.choice((-1, 0, 1))
    return rng.choice((max(edge, 1), rng.randint(1, pages * page)))


def random_splits(rng: Random, length: int) -> list[int]:
    """Chunks of any length, often single tokens; in the interpreter at most four."""
    chunks: list[int] = []
    while left := length - sum(chunks):
        if INTERPRETED and len(chunks) == 3:
            return [*chunks, left]
        chunks.append(rng.choice((1, rng.randint(1, min(left, 20)), rng.randint(1, left))))
    return chunks


def plan_of(case: Case, queries: int, before: int = 0, near_pages: int | None = None) -> Plan:
    """One request with ``before`` whole pages, ids 1, 2, ..., behind it."""
    slots = torch.arange((before + 2) * case.page, dtype=torch.int32)[None] + case.page
    near_pages = case.method.near_pages if near_pages is None else near_pages
    row = torch.tensor([0], device=case.device)
    return build_plan(row, [before * case.page], [queries], slots.to(case.device), case.page, near_pages)


def store_with(
    case: Case,
    tiers: Tensor,
    level: int = L.LEVEL_NEAR,
    only: int | None = None,
    calm: bool = False,
    scatter: Random | None = None,
) -> RecordStore:
    """Pages 1, 2, ... committed with these tiers and cut to a level, all of them or only one; with ``scatter`` their
    blocks lie anywhere.
    """
    layout = case.method.layout
    page = commit(layout, tiers, 1, calm_rows if calm else wild_rows, case.device)
    records = page.records.clone()
    some = slice(None) if only is None else slice(only, only + 1)
    records[some] = cut(records[some], layout, level)
    store = RecordStore(layout, 1, len(tiers), case.device)
    if scatter:
        order = scatter.sample(range(1, store.num_blocks + 1), store.num_blocks)
        store.ring.ids[: store.num_blocks] = torch.tensor(order, dtype=torch.int32, device=case.device)
    lengths = read_header(records, layout).nbytes.long()
    pages = torch.arange(1, len(tiers) + 1, device=case.device)
    store.write(0, pages, records, lengths)
    return store


def simple(near_pages: int = 1, near: bool = True) -> Case:
    """Two KV heads of 64, pages of 32."""
    return Case(Method(small_layout(near=near), near_pages), 2, torch.float64)


def random_tiers(pages: int) -> Tensor:
    """Tiers of ``simple`` pages."""
    return torch.randint(0, 3, (pages, 2, 32), generator=generator(pages), dtype=torch.uint8)
