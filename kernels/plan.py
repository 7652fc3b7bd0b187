"""The plan of one forward: its queries cut into units, and where each unit's keys are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from leankv_kernels.cascade import NO_GROUPS, find_groups


@dataclass(frozen=True)
class Plan:
    """A batch's queries as units; a unit is the run of queries of one request that lie in one page.

    A decode step has one unit of one query per request, a prefill chunk one unit per page it touches. Lists live on
    the host and come from lengths the scheduler already knows; tensors live on the device. Every layer of the forward
    shares one plan.
    """

    page_size: int
    window: int
    q_indptr: list[int]  # [U + 1] first query of each unit in the batch's token order
    offset: list[int]  # [U] position of the unit's first query inside its page
    page_index: list[int]  # [U] pages of the request before the unit's own
    request: list[int]  # [U] index of the unit's request in the batch
    page_indptr: list[int]  # [R + 1] first of each request's pages in ``pages``
    rows: Tensor  # int64 [U] request row of each unit
    own_pages: Tensor  # int64 [U] logical id of each unit's own page
    pages: Tensor  # int64 [sum] logical ids of the pages each request's units read, in order
    token_unit: Tensor  # int64 [T] unit of each query
    token_pos: Tensor  # int64 [T] position of each query inside its page
    token_rank: Tensor  # int64 [T] index of each query inside its unit
    units: Tensor  # int64 [U, 5] for kernels: first query, offset, queries, pages before, first in ``pages``
    full: Tensor  # int64 [f] units that write their page's last token: committed in this forward
    open: Tensor  # int64 [o] the other units: their raw tokens stay in the open page of their row
    full_index: Tensor  # int64 [f] pages of its sequence before each full unit's own
    groups: Tensor  # int64 [G, 5] units that read the same pages: see cascade.find_groups; kernels may ignore them
    members: Tensor  # int64 [M] the units of each group

    @property
    def first(self) -> Tensor:
        """int64 ``[U]``: ``offset`` on the device."""
        return self.units[:, 1]

    @property
    def length(self) -> Tensor:
        """int64 ``[U]``: queries of each unit."""
        return self.units[:, 2]

    @cached_property
    def one_unit_per_row(self) -> bool:
        """Whether no two units share a request's row, as in decode."""
        return len(set(self.request)) == len(self.request)

    @cached_property
    def unit_range(self) -> Tensor:
        """int64 ``[U]``: 0 to U - 1."""
        return torch.arange(self.num_units, device=self.units.device)

    @cached_property
    def causal(self) -> Tensor:
        """bool ``[U, max_queries, P]``: which positions of its page each query sees."""
        rank = torch.arange(self.max_queries, device=self.first.device)
        return self._position <= (self.first[:, None] + rank)[..., None]

    @cached_property
    def asked(self) -> Tensor:
        """bool ``[U, max_queries]``: which queries exist, units being padded to the longest."""
        return torch.arange(self.max_queries, device=self.first.device) < self.length[:, None]

    @cached_property
    def unwritten(self) -> Tensor:
        """bool ``[U, P]``: positions behind each unit's last query."""
        return self._position >= (self.first + self.length)[:, None]

    @cached_property
    def near_pages(self) -> Tensor:
        """int64: logical ids of the pages that some unit reads near, one mention for each unit."""
        own = self.units[:, 3]
        back = torch.arange(1, self.window + 1, device=own.device)
        at = self.units[:, 4, None] + own[:, None] - back
        return self.pages[at[back <= own[:, None]]]

    @property
    def _position(self) -> Tensor:
        return torch.arange(self.page_size, device=self.first.device)

    @property
    def num_units(self) -> int:
        """U."""
        return len(self.offset)

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.q_indptr[-1]

    @cached_property
    def max_queries(self) -> int:
        """Queries of the longest unit."""
        return max(b - a for a, b in zip(self.q_indptr, self.q_indptr[1:], strict=False)) if self.offset else 0


def build_plan(
    rows: Tensor,
    prefix_lens: Sequence[int],
    extend_lens: Sequence[int],
    req_to_token: Tensor,
    page_size: int,
    window: int,
    *,
    cascade: bool = True,
    host_pages: np.ndarray | None = None,
) -> Plan:
    """Cut a batch into units, and find those that share pages.

    Args:
        rows: integers ``[R]``, request rows, on the device.
        prefix_lens: tokens of each request before this forward (host).
        extend_lens: tokens of each request in this forward, 1 for decode (host); requests with 0 have no unit.
        req_to_token: int32 ``[rows, max_context]``, slot ids; ``slot // page_size`` is the logical page.
        page_size: tokens of a page.
        window: pages before the own page that are read at the near view.
        cascade: whether to look for units that share pages; results are the same either way.
        host_pages: int64, what ``Plan.pages`` will be. Where that lies in main memory it is read there; on a GPU it
            would have to be waited for, so without this argument nothing is looked for.
    """
    prefix = np.asarray(prefix_lens, dtype=np.int64)
    extend = np.asarray(extend_lens, dtype=np.int64)
    first_page = prefix // page_size
    last_page = (prefix + np.maximum(extend, 1) - 1) // page_size
    units = np.where(extend > 0, last_page - first_page + 1, 0)
    request = np.repeat(np.arange(len(prefix)), units)
    unit_start = np.cumsum(units) - units
    page_index = first_page[request] + np.arange(len(request)) - unit_start[request]
    begin = np.maximum(page_index * page_size, prefix[request])
    end = np.minimum((page_index + 1) * page_size, (prefix + extend)[request])
    offset, length = begin - page_index * page_size, end - begin
    q_indptr = np.concatenate([[0], np.cumsum(length)])
    token_unit = np.repeat(np.arange(len(request)), length)
    token_rank = np.arange(q_indptr[-1]) - q_indptr[:-1][token_unit]
    reads = np.where(units > 0, last_page, 0)
    page_indptr = np.concatenate([[0], np.cumsum(reads)])
    page_request = np.repeat(np.arange(len(prefix)), reads)
    page_number = np.arange(page_indptr[-1]) - page_indptr[:-1][page_request]
    full = offset + length == page_size

    device = req_to_token.device

    def put(a: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(a)).to(device, non_blocking=True)

    rows = rows.to(torch.int64)
    unit_rows = rows[put(request)]

    def logical(row: Tensor, page: np.ndarray) -> Tensor:
        return req_to_token[row, put(page * page_size)].long() // page_size

    unit_table = np.stack([q_indptr[:-1], offset, length, page_index, page_indptr[request]], axis=1)
    pages = logical(rows[put(page_request)], page_number)
    if host_pages is None and device.type == "cpu":
        host_pages = pages.numpy()
    groups, members = NO_GROUPS
    if cascade and host_pages is not None:
        groups, members = find_groups(host_pages, unit_table, page_size, window)

    return Plan(
        page_size=page_size,
        window=window,
        q_indptr=q_indptr.tolist(),
        offset=offset.tolist(),
        page_index=page_index.tolist(),
        request=request.tolist(),
        page_indptr=page_indptr.tolist(),
        rows=unit_rows,
        own_pages=logical(unit_rows, page_index),
        pages=pages,
        token_unit=put(token_unit),
        token_pos=put(offset[token_unit] + token_rank),
        token_rank=put(token_rank),
        units=put(unit_table),
        full=put(np.flatnonzero(full)),
        open=put(np.flatnonzero(~full)),
        full_index=put(page_index[full]),
        groups=put(groups),
        members=put(members),
    )
