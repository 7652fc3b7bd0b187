"""The raw pages that running requests are still writing: one per request row and layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from leankv_kernels import Plan, RawPages
from leankv_kernels.ops import WriteTokens
from leankv_sglang.errors import LeanKVError
from leankv_sglang.kvcache.places import Places, find_places


class OpenPages:
    """Keys, values and column scores of every row's open page, and how far each row has written it.

    Args:
        layers: of the model.
        rows: request rows.
        page_size: tokens of a page.
        kv_heads, head_dim: of a layer; the latter of keys.
        query_heads: of a layer; each has column scores of its own.
        dtype: of raw keys and values.
        device: where they live.
        write: how tokens get there.
        spare: pages of one layer for the other pages of prompts that span several.
        v_head_dim: of values; that of keys by default.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        page_size: int,
        kv_heads: int,
        head_dim: int,
        query_heads: int,
        dtype: torch.dtype,
        device: torch.device | str,
        write: WriteTokens = RawPages.write,
        spare: int = 0,
        *,
        v_head_dim: int = 0,
    ) -> None:
        self.page_size, self.spare, self._write = page_size, spare, write
        count = layers * rows + spare
        shapes = ((count, page_size, kv_heads, dim) for dim in (head_dim, v_head_dim or head_dim))
        key, value = (torch.zeros(shape, dtype=dtype, device=device) for shape in shapes)
        scores = torch.zeros(count, query_heads, page_size, dtype=torch.int32, device=device)
        self._all = key, value, scores
        self.key, self.value, self.scores = (x[: layers * rows].unflatten(0, (layers, rows)) for x in self._all)
        # On the host: tokens of its request that a row holds, up to the end of its open page.
        self._written = torch.zeros(rows, dtype=torch.int64)

    @property
    def rows(self) -> int:
        """Request rows."""
        return self.key.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Of raw keys and values."""
        return self.key.dtype

    def raw(self, layer: int, plan: Plan, key: Tensor, value: Tensor) -> RawPages:
        """The own pages of a forward's tiles with its tokens, ``[T, H, D]`` and ``[T, H, Dv]``, written.

        Where every tile has a row of its own, as in decode, these are the rows' open pages, in place; otherwise spare
        pages too, or copies where there are too few, which :meth:`keep` takes back.
        """
        raw = RawPages(self.key[layer], self.value[layer], self.scores[layer], plan.rows)
        if not plan.one_tile_per_row:
            rows, places = plan.rows, self.places(plan)
            if places is not None:
                raw = RawPages(*self._all, places.at[layer])
            else:
                raw = RawPages(raw.key[rows], raw.value[rows], raw.scores[rows], plan.tile_range)
        self._write(raw, plan, key.to(self.dtype), value.to(self.dtype))
        return raw

    def places(self, plan: Plan) -> Places | None:
        """Where the tiles of a plan lie that has requests of several; None where there are too few spare pages."""
        if "places" not in plan.memo:
            plan.memo["places"] = find_places(plan, len(self.key), self.rows, self.spare)
        return cast("Places | None", plan.memo["places"])

    def of_rows(self, rows: Tensor) -> RawPages:
        """The open pages of request rows int64 ``[n]``, in all layers, in place."""
        return RawPages(self.key, self.value, self.scores, rows)

    def keep(self, layer: int, plan: Plan, raw: RawPages) -> None:
        """Leave the pages that are not full yet, with their column scores, to their rows."""
        if plan.one_tile_per_row:
            return
        if (places := self.places(plan)) is not None:
            if places.source.numel():
                for pages in self._all:
                    pages[places.target[layer]] = pages[places.source]
        elif plan.open.numel():
            rows = plan.rows[plan.open]
            for kept, page in zip((self.key, self.value, self.scores), raw[:3], strict=True):
                kept[layer][rows] = page[plan.open]

    def copy(self, source: int, target: int) -> None:
        """Give one row what another holds."""
        for raw in (self.key, self.value, self.scores):
            raw[:, target] = raw[:, source]

    def reset(self, rows: Sequence[int]) -> None:
        """Note that rows were given to new requests."""
        self._written[rows] = 0

    def go_on(self, rows: Tensor, prefix: Sequence[int], extend: Sequence[int]) -> None:
        """Note that a forward writes ``extend`` tokens of requests that have ``prefix`` tokens.

        A forward that starts inside a page continues what its row's open page holds. Reading anything else would
        corrupt silently, so what each row holds is tracked on the host.

        Args:
            rows: integers ``[R]``, in main memory.
            prefix, extend: tokens of each request before and in this forward.

        Raises:
            LeanKVError: where a row does not hold what its request continues.
        """
        start = torch.as_tensor(prefix)
        # Row 0 is padding, of batches made up to warm up or to capture.
        inside = (start % self.page_size != 0) & (rows != 0)
        if bool((inside & (self._written[rows] != start)).any()):
            raise LeanKVError(
                "A request continues inside a page that its row does not hold; this serving mode is not supported by "
                "LeanKV, please report which flags and which kind of request led here."
            )
        self._written[rows] = start + torch.as_tensor(extend)

    def written(self, row: int) -> int:
        """Tokens of its request that a row holds, up to the end of its open page."""
        return int(self._written[row])

    def nbytes(self) -> int:
        """Bytes of all rows' pages and column scores, without spare ones."""
        return self.key.nbytes + self.value.nbytes + self.scores.nbytes

    def spare_nbytes(self) -> int:
        """Bytes of the spare pages and their column scores."""
        return sum(x.nbytes for x in self._all) - self.nbytes()

    def row_nbytes(self) -> int:
        """Bytes of one row's page and column scores."""
        return self.nbytes() // self.rows
