"""How many tokens the pool of sliding windows is for, where nobody said so (``--swa-full-tokens-ratio``).

Each running request keeps a window, chunks of prefill under way are there whole, and every cached end that is to be hit
keeps a window: four for each request, as SGLang reckons for DeepSeek V4, and one at least for each 2,048 units of full
layers, which hold some 4,000 tokens and more. Of other models SGLang keeps 0.8 tokens for each token of full layers;
that stays the most. What windows do not need, pages have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SGLANG_RATIO = 0.8
"""SGLang's default of ``--swa-full-tokens-ratio``."""
ENDS = 4
"""Cached ends for each running request."""
END_EVERY = 2048
"""Units of full layers for which there is a cached end at least."""
SLID = 128
"""Tokens that a window slides on before what it has left is given back, SGLang's default."""


@dataclass(frozen=True)
class WindowNeed:
    """What windows are needed for.

    Args:
        window, page_size: tokens.
        requests: that run at once.
        chunk: tokens of a prefill at most.
    """

    window: int
    page_size: int
    requests: int
    chunk: int

    @property
    def end(self) -> int:
        """Tokens that a cached end keeps."""
        return self.window + self.page_size

    @property
    def running(self) -> int:
        """Tokens of running requests and of two chunks under way, in whole pages."""
        return self.requests * (self.end + SLID + self.page_size) + 2 * self.chunk + 2 * self.page_size

    @property
    def ends(self) -> int:
        """Tokens of cached ends, by requests."""
        return ENDS * self.requests * self.end

    def ratio(self, units: int) -> float:
        """Tokens of windows for each of so many units of full layers."""
        return min(SGLANG_RATIO, (self.running + max(self.ends, units * self.end / END_EVERY)) / units)

    def tokens_in(self, memory: int, token_bytes: int, units_in: Callable[[int], int]) -> int:
        """Tokens of windows where they share so many bytes with the pages.

        Args:
            memory: bytes of both.
            token_bytes: of a token in all layers with windows.
            units_in: of full layers, by the bytes that are left for them; 0 where they do not hold any.
        """
        least, most = 0, memory // token_bytes
        while least < most:
            # The more windows there are the fewer units, and those need the fewer windows.
            tokens = (least + most) // 2
            units = units_in(memory - tokens * token_bytes)
            if units and self.ratio(units) * units > tokens:
                least = tokens + 1
            else:
                most = tokens
        return least
