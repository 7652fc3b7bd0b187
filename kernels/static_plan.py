"""The plan of decode steps at addresses that stay, so that a CUDA graph may be captured once and replayed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from leankv_kernels.host import Numbers, staged
from leankv_kernels.plan import TILE_COLUMNS, Plan, no_groups


class StaticPlan:
    """Decode of up to ``requests`` requests, a query each, behind up to ``pages`` pages each.

    Every step's numbers are written in one copy, on the stream on which graphs are replayed. What a captured launch
    does must not depend on the host's numbers, which are bounds.

    Args:
        requests: at most.
        pages: of a request before its own page, at most.
        page_size: tokens of a page.
        near_pages: pages before the own page that are read at the near view.
        device: of all tensors.
    """

    def __init__(self, requests: int, pages: int, page_size: int, near_pages: int, device: torch.device | str) -> None:
        self.requests, self.most_pages, self.page_size, self.near_pages = requests, pages, page_size, near_pages
        sizes = [requests] * 6 + [requests * TILE_COLUMNS, requests * pages]
        self._buffer = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self._rows, self._own_pages, self._token_pos, *self._full, tiles, self._pages = self._buffer.split(sizes)
        self._tiles = tiles.view(requests, TILE_COLUMNS)
        self._range = torch.arange(requests, device=device)
        self._none = torch.zeros(0, dtype=torch.int64, device=device)
        self._plans: dict[int, Plan] = {}

    def plan(self, requests: int) -> Plan:
        """The plan of the first so many requests, the same object every time. It commits nothing: pages that a step
        fills are the caller's to commit before any later step reads them.
        """
        if requests not in self._plans:
            n = requests
            groups, members = no_groups(self._buffer.device)
            self._plans[n] = Plan(
                page_size=self.page_size,
                near_pages=self.near_pages,
                q_indptr=list(range(n + 1)),
                offset=[0] * n,
                page_index=[self.most_pages] * n,
                request=list(range(n)),
                page_indptr=[self.most_pages * i for i in range(n + 1)],
                rows=self._rows[:n],
                own_pages=self._own_pages[:n],
                pages=self._pages,
                token_tile=self._range[:n],
                token_pos=self._token_pos[:n],
                token_rank=torch.zeros_like(self._range[:n]),
                tiles=self._tiles[:n],
                full=self._none,
                open=self._range[:n],
                full_index=self._none,
                groups=groups,
                members=members,
                bounds=True,
            )
        return self._plans[requests]

    def fill(self, rows: Numbers, lengths: Numbers, pages: Numbers, own_pages: Numbers) -> Numbers:
        """Write a step's numbers; requests behind those given are padding: row 0, page 0, one token.

        What was written before is overwritten, :meth:`full` too.

        Args:
            rows: ``[R]``, request rows.
            lengths: ``[R]``, tokens of each request, that of the step included.
            pages: ``[sum]``, logical ids of the pages before each request's own, in order.
            own_pages: ``[R]``, of the page that each request's token lies in.

        Returns:
            int64 ``[f]``, the requests whose page the step fills.

        Raises:
            ValueError: for more requests or pages than there is room for.
        """
        count, position = len(rows), np.asarray(lengths, np.int64) - 1
        before, offset = position // self.page_size, position % self.page_size
        if count > self.requests or int(before.max(initial=0)) > self.most_pages or before.sum() != len(pages):
            raise ValueError(
                f"a graph's plan has room for {self.requests} requests of {self.most_pages} pages, not for {count} of "
                f"{int(before.max(initial=0))}, {len(pages)} in all"
            )
        n = self.requests
        fixed = n * (6 + TILE_COLUMNS)
        filled = np.flatnonzero(offset == self.page_size - 1)
        flat = staged(fixed + len(pages), torch.int64, self._buffer.device).zero_()
        host = flat.numpy()
        of_filled = (np.asarray(own_pages)[filled], np.asarray(rows)[filled], before[filled])
        for i, column in enumerate((rows, own_pages, offset, *of_filled)):
            host[i * n : i * n + len(column)] = column
        tiles = host[6 * n : fixed].reshape(n, TILE_COLUMNS)
        tiles[:, 0], tiles[:, 2] = np.arange(n), 1
        tiles[:count, 1], tiles[:count, 3], tiles[:count, 4] = offset, before, np.cumsum(before) - before
        host[fixed:] = pages
        self._buffer[: len(flat)].copy_(flat, non_blocking=True)
        return filled

    def full(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the pages that the step fills, ``count`` of them by order of requests: logical ids, request rows, and how
        many pages are before each, int64 ``[count]``."""
        pages, rows, index = (column[:count] for column in self._full)
        return pages, rows, index
