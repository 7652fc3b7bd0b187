"""Free blocks of the pool: a ring on the device, taken and returned by prefix sum, without asking the host."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


class BlockRing:
    """Circular list of free block ids with an explicit counter (start and end alone cannot tell full from empty).

    Block 0 is never handed out: a zero entry of a page table or a block list means "none".

    Args:
        num_blocks: ids 1 .. num_blocks are free at first.
        device: where the ring lives.
    """

    def __init__(self, num_blocks: int, device: torch.device | str) -> None:
        self.num_blocks = num_blocks
        # One slot past the ring takes the writes of entries that a mask leaves out.
        self.ids = torch.empty(num_blocks + 1, dtype=torch.int32, device=device)
        self.head = torch.zeros((), dtype=torch.int64, device=device)
        self.free_blocks = torch.zeros((), dtype=torch.int64, device=device)
        self.clear()

    def clear(self) -> None:
        """Make every block free again."""
        self.ids[: self.num_blocks] = torch.arange(1, self.num_blocks + 1, dtype=torch.int32)
        self.ids[self.num_blocks] = 0
        self.head.zero_()
        self.free_blocks.fill_(self.num_blocks)

    def take(self, counts: Tensor, width: int) -> Tensor:
        """Take ``counts[i]`` blocks for each of n records at once.

        The caller reserves beforehand: taking more than ``free_blocks`` corrupts the ring, which the audit reports.

        Args:
            counts: integers ``[n]``, each at most ``width``.

        Returns:
            int32 ``[n, width]``, zero behind each count.
        """
        counts = counts.to(torch.int64)
        start = counts.cumsum(0) - counts
        column = torch.arange(width, device=counts.device)
        at = (self.head + start[:, None] + column) % self.num_blocks
        ids = torch.where(column < counts[:, None], self.ids[at], 0)
        self.skip(counts.sum())
        return ids

    def skip(self, total: Tensor) -> None:
        """Take the next blocks, int64 ``[]`` so many, which the caller has read itself."""
        self.head.copy_((self.head + total) % self.num_blocks)
        self.free_blocks.sub_(total)

    def give(self, ids: Tensor) -> None:
        """Return every non-zero id of an int32 tensor of any shape."""
        ids = ids.flatten()
        mask = ids != 0
        rank = mask.cumsum(0) - 1
        at = (self.head + self.free_blocks + rank) % self.num_blocks
        self.ids.scatter_(0, torch.where(mask, at, self.num_blocks), ids)
        self.free_blocks.add_(mask.sum())

    def free_ids(self) -> Tensor:
        """The ids now free, in order (asks the device how many: for audits only)."""
        return torch.cat([self.ids[:0], *self.free_pieces(self.num_blocks)])

    def free_pieces(self, size: int) -> Iterator[Tensor]:
        """The same, up to ``size`` of them at a time."""
        count = int(self.free_blocks)
        for start in range(0, count, max(size, 1)):
            place = torch.arange(start, min(start + size, count), device=self.ids.device)
            yield self.ids[(self.head + place) % self.num_blocks]

    def nbytes(self) -> int:
        """Bytes the ring occupies."""
        return sum(t.numel() * t.element_size() for t in (self.ids, self.head, self.free_blocks))
