"""Which pages each request row names, on the host: a mirror of SGLang's ``req_to_token``, a page an entry.

SGLang hands slots around as tensors of the device; reading ids out of them waits for the forward under way. Everything
that writes a row is known to the host, though, and told here:

- the pages of a hit, when a request gets its row (:meth:`PageRows.begin`; the tree knows its nodes' pages);
- new pages, which the allocator chooses on the host (:meth:`PageRows.offer`), once SGLang says for which rows
  (:meth:`PageRows.extended`);
- pages of the tree that a request's row is pointed to when its own are inserted (:meth:`PageRows.put`).

What was not told is read from the device, and counted (:class:`SlotReader`): tensors of slots that do not come from a
row, and all rows from then on where SGLang writes some by itself, as beam search does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leankv_kernels.host import runs
from leankv_sglang.kvcache.ledger import Pages

Offer = tuple[NDArray[np.int64], NDArray[np.int64], Pages]
UNKNOWN = 0
"""No page that is handed out has this id."""


class SlotReader:
    """Reads page ids off slots of the device, which a GPU makes the host wait for."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.reads = 0
        """How often that was done."""

    def ids(self, numbers: Tensor) -> Pages:
        """Integers ``[n]`` as they are: int64 ``[n]``."""
        self.reads += 1
        return numbers.detach().cpu().numpy().astype(np.int64)

    def pages(self, slots: Tensor) -> Pages:
        """Pages of slots ``[n]``, one a page: int64 ``[n]``."""
        return self.ids(slots) // self.page_size


class PageRows:
    """Logical pages by request row and page number.

    Args:
        req_to_token: SGLang's table of slots, int32 ``[rows, tokens]``.
        reader: for what was not told.
    """

    def __init__(self, req_to_token: Tensor, reader: SlotReader) -> None:
        self._slots, self._reader = req_to_token, reader
        self.page_size = reader.page_size
        rows, tokens = req_to_token.shape
        # Zeros cost no memory before they are written to.
        self._pages = np.zeros((rows, -(-tokens // self.page_size)), np.int32)
        self._begun = np.zeros(rows, bool)
        self._told = True
        self._offer: Offer | None = None
        self.prefix_of: Callable[[Any], Pages] | None = None
        """Pages of a request's hit; the tree sets it."""

    # ---- what is told ----

    def forget(self, rows: Sequence[int]) -> None:
        """Rows have new owners."""
        self._pages[rows] = UNKNOWN
        self._begun[rows] = False

    def begin(self, reqs: Iterable[Any]) -> None:
        """SGLang requests have their rows; of those that got them just now, note the pages of the hit."""
        for req in reqs:
            row = req.kv.req_pool_idx
            if not self._begun[row]:
                self._begun[row] = True
                if req.prefix_len and self.prefix_of is not None:
                    self.put(row, 0, self.prefix_of(req))

    def offer(self, first: NDArray[np.int64], counts: NDArray[np.int64], pages: Pages) -> None:
        """Note pages just allocated: ``counts[i]`` of them are a request's pages from number ``first[i]`` on."""
        self._offer = (first, counts, pages)

    def extended(self, rows: Tensor) -> None:
        """SGLang has written what was offered last into these rows, int64 ``[R]`` in main memory."""
        offer, self._offer = self._offer, None
        owners = rows.numpy()
        if offer is None or len(offer[0]) != len(owners) or not self._begun[owners].all():
            self._told = False
            return
        first, counts, pages = offer
        request, number = runs(counts)
        self._pages[owners[request], first[request] + number] = pages

    def put(self, row: int, first: int, pages: Pages) -> None:
        """Note that a row's pages from number ``first`` on are these."""
        self._pages[row, first : first + len(pages)] = pages

    # ---- what is asked ----

    def of(self, row: int, stop: int, start: int = 0) -> Pages:
        """A row's pages from number ``start`` up to ``stop``, int64 ``[stop - start]``."""
        numbers = np.arange(start, stop)
        return self.read(np.full(len(numbers), row), numbers)

    def read(self, rows: NDArray[np.integer], numbers: NDArray[np.integer]) -> Pages:
        """Page ``numbers[i]`` of row ``rows[i]``, int64 ``[n]``."""
        pages = self._pages[rows, numbers].astype(np.int64)
        # Nobody is told of row 0, which padding reads: all of it is page 0.
        if not self._told or ((pages == UNKNOWN) & (rows != 0)).any():
            at = [torch.from_numpy(np.ascontiguousarray(x, np.int64)) for x in (rows, numbers * self.page_size)]
            return self._reader.pages(self._slots[at[0].to(self._slots.device), at[1].to(self._slots.device)])
        return pages

    def audit(self) -> list[str]:
        """A sentence if the mirror says anything else than the device; asks it, so for idle times."""
        rows, numbers = np.nonzero(self._pages if self._told else np.zeros((0, 0)))
        # What a row named before it was given back may have been overwritten since.
        mine = self._begun[rows]
        rows, numbers = rows[mine], numbers[mine]
        slots = self._slots.cpu().numpy()[rows, numbers * self.page_size]
        bad = int((slots // self.page_size != self._pages[rows, numbers]).sum())
        return [f"the host names other pages than the device in {bad} places of request rows"] if bad else []
