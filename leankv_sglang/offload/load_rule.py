"""Whether a prefix is brought from a store or computed: whichever was seen to be quicker."""

from __future__ import annotations

_WEIGHT = 0.2
"""Of what was seen last, in the running means."""


class LoadRule:
    """Bytes over what the store was seen to give a second, against tokens over what prefills were seen to compute.

    What was not seen yet is taken to be worth a try.

    Args:
        mode: ``auto``, or ``always`` or ``never`` whatever was seen.
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.bytes_per_second = self.tokens_per_second = 0.0

    def read(self, nbytes: int, seconds: float) -> None:
        """Take note of bytes that came from the store."""
        self.bytes_per_second = _mean(self.bytes_per_second, nbytes, seconds)

    def computed(self, tokens: int, seconds: float) -> None:
        """Take note of a prefill."""
        self.tokens_per_second = _mean(self.tokens_per_second, tokens, seconds)

    def is_worth(self, tokens: int, nbytes: float) -> bool:
        """Whether so many tokens, whose pages are of so many bytes, should come from the store."""
        if self.mode != "auto" or not self.bytes_per_second or not self.tokens_per_second:
            return self.mode != "never"
        return nbytes / self.bytes_per_second <= tokens / self.tokens_per_second


def _mean(before: float, amount: float, seconds: float) -> float:
    if seconds <= 0 or amount <= 0:
        return before
    rate = amount / seconds
    # Rates are means over time, not over occasions, where those are alike; so their inverses are averaged.
    return rate if not before else 1 / ((1 - _WEIGHT) / before + _WEIGHT / rate)
