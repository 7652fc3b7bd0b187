"""The raw pages that running requests are still writing: one per request row and layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leankv_kernels import Plan, RawPages
from leankv_kernels.ops import WriteTokens
from leankv_sglang.errors import LeanKVError


class OpenPages:
    """Keys, values and column scores of every row's open page, and how far each row has written it.

    Args:
        layers: of the model.
        rows: request rows.
        page_size: tokens of a page.
        kv_heads, head_dim: of a layer.
        query_heads: of a layer; each has column scores of its own.
        dtype: of raw keys and values.
        device: where they live.
        write: how tokens get there.
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
    ) -> None:
        self.page_size, self._write = page_size, write
        shape = (layers, rows, page_size, kv_heads, head_dim)
        self.key = torch.zeros(shape, dtype=dtype, device=device)
        self.value = torch.zeros(shape, dtype=dtype, device=device)
        self.scores = torch.zeros(layers, rows, query_heads, page_size, dtype=torch.int32, device=device)
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
        """The own pages of a forward's tiles with its tokens ``[T, H, D]`` written.

        Where every tile has a row of its own, as in decode, these are the rows' open pages, in place; otherwise copies,
        which :meth:`keep` takes back.
        """
        raw = RawPages(self.key[layer], self.value[layer], self.scores[layer], plan.rows)
        if not plan.one_tile_per_row:
            rows = plan.rows
            raw = RawPages(raw.key[rows], raw.value[rows], raw.scores[rows], plan.tile_range)
        self._write(raw, plan, key.to(self.dtype), value.to(self.dtype))
        return raw

    def of_rows(self, rows: Tensor) -> RawPages:
        """The open pages of request rows int64 ``[n]``, in all layers, in place."""
        return RawPages(self.key, self.value, self.scores, rows)

    def keep(self, layer: int, plan: Plan, raw: RawPages) -> None:
        """Leave the pages that are not full yet, with their column scores, to their rows."""
        if not plan.one_tile_per_row and plan.open.numel():
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

    def nbytes(self) -> int:
        """Bytes of all rows' pages and column scores."""
        return self.key.nbytes + self.value.nbytes + self.scores.nbytes

    def row_nbytes(self) -> int:
        """Bytes of one row's page and column scores."""
        return self.nbytes() // self.rows
