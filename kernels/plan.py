"""The plan of one forward: its queries cut into tiles, and where each tile's keys are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leankv_kernels.cascade import NO_GROUPS, find_groups
from leankv_kernels.host import put, runs

TILE_COLUMNS = 5
"""Numbers of a tile in ``Plan.tiles``."""


@dataclass(frozen=True)
class Plan:
    """A batch's queries as tiles; a tile is the run of queries of one request that lie in one page.

    A decode step has one tile of one query per request, a prefill chunk one tile per page it touches. Lists live on
    the host and come from lengths the scheduler already knows; tensors live on the device. Every layer of the forward
    shares one plan.
    """

    page_size: int
    near_pages: int
    q_indptr: list[int]  # [U + 1] first query of each tile in the batch's token order
    offset: list[int]  # [U] position of the tile's first query inside its page
    page_index: list[int]  # [U] pages of the request before the tile's own
    request: list[int]  # [U] index of the tile's request in the batch
    page_indptr: list[int]  # [R + 1] first of each request's pages in ``pages``
    rows: Tensor  # int64 [U] request row of each tile
    own_pages: Tensor  # int64 [U] logical id of each tile's own page
    pages: Tensor  # int64 [sum] logical ids of the pages each request's tiles read, in order
    token_tile: Tensor  # int64 [T] tile of each query
    token_pos: Tensor  # int64 [T] position of each query inside its page
    token_rank: Tensor  # int64 [T] index of each query inside its tile
    tiles: Tensor  # int64 [U, 5] for kernels: first query, offset, queries, pages before, first in ``pages``
    full: Tensor  # int64 [f] tiles that write their page's last token: committed in this forward
    open: Tensor  # int64 [o] the other tiles: their raw tokens stay in the open page of their row
    full_index: Tensor  # int64 [f] pages of its sequence before each full tile's own
    groups: Tensor  # int64 [G, 5] tiles that read the same pages: see cascade.find_groups; kernels may ignore them
    members: Tensor  # int64 [M] the tiles of each group
    host_pages: NDArray[np.int64] | None = None  # int64 [sum] ``pages``, where the host knows them
    bounds: bool = False  # whether ``page_index`` on the host are bounds of what ``tiles`` say, as in a captured graph

    @cached_property
    def memo(self) -> dict[object, object]:
        """What kernels worked out from the plan, for all layers."""
        return {}

    @property
    def first(self) -> Tensor:
        """int64 ``[U]``: ``offset`` on the device."""
        return self.tiles[:, 1]

    @property
    def length(self) -> Tensor:
        """int64 ``[U]``: queries of each tile."""
        return self.tiles[:, 2]

    @cached_property
    def one_tile_per_row(self) -> bool:
        """Whether no two tiles share a request's row, as in decode."""
        return len(set(self.request)) == len(self.request)

    @cached_property
    def tile_range(self) -> Tensor:
        """int64 ``[U]``: 0 to U - 1."""
        return torch.arange(self.num_tiles, device=self.tiles.device)

    @cached_property
    def causal(self) -> Tensor:
        """bool ``[U, max_queries, P]``: which positions of its page each query sees."""
        rank = torch.arange(self.max_queries, device=self.first.device)
        return self._position <= (self.first[:, None] + rank)[..., None]

    @cached_property
    def asked(self) -> Tensor:
        """bool ``[U, max_queries]``: which queries exist, tiles being padded to the longest."""
        return torch.arange(self.max_queries, device=self.first.device) < self.length[:, None]

    @cached_property
    def unwritten(self) -> Tensor:
        """bool ``[U, P]``: positions behind each tile's last query."""
        return self._position >= (self.first + self.length)[:, None]

    @property
    def _position(self) -> Tensor:
        return torch.arange(self.page_size, device=self.first.device)

    @property
    def num_tiles(self) -> int:
        """U."""
        return len(self.offset)

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.q_indptr[-1]

    @cached_property
    def max_queries(self) -> int:
        """Queries of the longest tile."""
        return max(b - a for a, b in zip(self.q_indptr, self.q_indptr[1:], strict=False)) if self.offset else 0


def build_plan(
    rows: Tensor,
    prefix_lens: Sequence[int],
    extend_lens: Sequence[int],
    req_to_token: Tensor,
    page_size: int,
    near_pages: int,
    *,
    cascade: bool = True,
    host_pages: NDArray[np.int64] | None = None,
) -> Plan:
    """Cut a batch into tiles, and find those that share pages.

    Args:
        rows: integers ``[R]``, request rows, on the device.
        prefix_lens: tokens of each request before this forward (host).
        extend_lens: tokens of each request in this forward, 1 for decode (host); requests with 0 have no tile.
        req_to_token: int32 ``[rows, max_context]``, slot ids; ``slot // page_size`` is the logical page.
        page_size: tokens of a page.
        near_pages: pages before the own page that are read at the near view.
        cascade: whether to look for tiles that share pages; results are the same either way.
        host_pages: int64, what ``Plan.pages`` will be. Where that lies in main memory it is read there; on a GPU it
            would have to be waited for, so without this argument no kernel looks for what is shared.

    Raises:
        ValueError: for ``host_pages`` of another number of pages.
    """
    prefix = np.asarray(prefix_lens, dtype=np.int64)
    extend = np.asarray(extend_lens, dtype=np.int64)
    first_page = prefix // page_size
    last_page = (prefix + np.maximum(extend, 1) - 1) // page_size
    tiles = np.where(extend > 0, last_page - first_page + 1, 0)
    request, tile_number = runs(tiles)
    page_index = first_page[request] + tile_number
    begin = np.maximum(page_index * page_size, prefix[request])
    end = np.minimum((page_index + 1) * page_size, (prefix + extend)[request])
    offset, length = begin - page_index * page_size, end - begin
    q_indptr = np.concatenate([[0], np.cumsum(length)])
    token_tile, token_rank = runs(length)
    reads = np.where(tiles > 0, last_page, 0)
    page_indptr = np.concatenate([[0], np.cumsum(reads)])
    if host_pages is not None and len(host_pages) != page_indptr[-1]:
        raise ValueError(f"the plan reads {page_indptr[-1]} pages, and the host names {len(host_pages)}")
    page_request, page_number = runs(reads)
    full = offset + length == page_size

    tile_table = np.stack([q_indptr[:-1], offset, length, page_index, page_indptr[request]], axis=1)
    at = (request, page_request, page_number * page_size, page_index * page_size)
    by_token = (token_tile, offset[token_tile] + token_rank, token_rank)
    by_page = (np.flatnonzero(full), np.flatnonzero(~full), page_index[full])
    on_device = put(req_to_token.device, *at, tile_table, *by_token, *by_page)
    tile_request, reading, reading_at, own_at, tiles_there, *others = on_device

    rows = rows.to(torch.int64)
    tile_rows = rows[tile_request]
    pages = req_to_token[rows[reading], reading_at].long() // page_size
    if host_pages is None and pages.device.type == "cpu":
        host_pages = pages.numpy()
    groups, members = NO_GROUPS
    # The CUDA kernels find for themselves what is shared.
    if cascade and host_pages is not None and pages.device.type != "cuda":
        groups, members = find_groups(host_pages, tile_table, page_size, near_pages)
    token_tiles, token_pos, token_ranks, full_tiles, open_tiles, full_index = others
    group_table, group_members = put(pages.device, groups, members) if len(groups) else no_groups(pages.device)

    return Plan(
        page_size=page_size,
        near_pages=near_pages,
        q_indptr=q_indptr.tolist(),
        offset=offset.tolist(),
        page_index=page_index.tolist(),
        request=request.tolist(),
        page_indptr=page_indptr.tolist(),
        rows=tile_rows,
        own_pages=req_to_token[tile_rows, own_at].long() // page_size,
        pages=pages,
        token_tile=token_tiles,
        token_pos=token_pos,
        token_rank=token_ranks,
        tiles=tiles_there,
        full=full_tiles,
        open=open_tiles,
        full_index=full_index,
        groups=group_table,
        members=group_members,
        host_pages=host_pages if cascade else None,
    )


@cache
def no_groups(device: torch.device) -> list[Tensor]:
    """``Plan.groups`` and ``Plan.members`` where nothing is shared."""
    return put(device, *NO_GROUPS)
