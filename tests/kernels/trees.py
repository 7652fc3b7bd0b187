"""Batches whose requests share prefixes as paths of a radix tree do, for the tests of cascade."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch

from leankv_kernels import Plan, build_plan


@dataclass(frozen=True)
class TreeBatch:
    """Requests by the ids of the pages before their own, and how many queries each asks.

    Attributes:
        lists: page ids of each request.
        queries: of each request, from the beginning of its own page on.
        inside: tokens of its own page before the queries.
    """

    lists: list[list[int]]
    queries: list[int]
    inside: list[int]
    page_size: int
    near_pages: int

    def plan(self, cascade: bool = True, device: str = "cpu") -> Plan:
        """The forward's plan; own pages get ids that no record has."""
        size, most = self.page_size, max(map(len, self.lists)) + 1
        ids = torch.zeros(len(self.lists), most, dtype=torch.int32)
        for row, pages in enumerate(self.lists):
            ids[row, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        slots = (ids[:, :, None] * size + torch.arange(size, dtype=torch.int32)).flatten(1)
        prefix = [len(pages) * size + inside for pages, inside in zip(self.lists, self.inside, strict=True)]
        rows = torch.arange(len(self.lists), device=device)
        return build_plan(rows, prefix, self.queries, slots.to(device), size, self.near_pages, cascade=cascade)


def decode_batch(lists: list[list[int]], page_size: int = 64, near_pages: int = 1) -> TreeBatch:
    """One query for every request."""
    return TreeBatch(lists, [1] * len(lists), [3] * len(lists), page_size, near_pages)


def random_lists(rng: Random, requests: int, pages: int, depth: int) -> list[list[int]]:
    """Lists of 0 to ``depth`` of the ids 1 to ``pages``: each goes along an earlier one for a while, often to its end,
    or has nothing in common with any; the same id may occur in several places.
    """
    lists: list[list[int]] = []
    for _ in range(requests):
        begin: list[int] = []
        if lists and rng.random() < 0.8:
            other = rng.choice(lists)
            begin = other[: rng.choice((len(other), rng.randint(0, len(other))))]
        more = rng.choice((0, 0, 1, rng.randint(0, max(depth - len(begin), 0))))
        lists.append(begin + [rng.randint(1, pages) for _ in range(more)])
    rng.shuffle(lists)
    return lists


def random_batch(rng: Random, pages: int, page_size: int, depth: int) -> TreeBatch:
    """Mostly decode; some requests ask for more, or sit at an edge of their page."""
    lists = random_lists(rng, rng.randint(1, 9), pages, depth)
    inside = [rng.choice((0, 1, page_size - 1)) for _ in lists]
    queries = [rng.choice((1, 1, 1, 1, rng.randint(2, 5))) for _ in lists]
    queries = [min(n, page_size - i) for n, i in zip(queries, inside, strict=True)]
    return TreeBatch(lists, queries, inside, page_size, rng.randint(0, 3))
