"""An independent reading of the specification in numpy: quantization, the read rule and the scores, token by token.

Nothing here is shared with the ops under test, and nothing is fast. Everything is float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from leankv_kernels import HIGH, LOW, MID, Tier

Array = NDArray[np.float64]


GROWTH = {8: 1.0, 4: 1.14, 2: 1.6}
"""Of a row's range, at most, by the fewest bits with which it is read."""


def half_below(x: Array) -> Array:
    """The largest float16 that is at most x."""
    half = np.asarray(x, dtype=np.float64).astype(np.float16)
    with np.errstate(over="ignore"):  # below the least float16, where it is not used
        below = np.nextafter(half, np.float16(-np.inf))
    return np.where(half > x, below, half).astype(np.float64)


def half_step(x: Array) -> Array:
    """The distance of neighbouring float16 numbers at x."""
    exponent = np.frexp(x)[1] - 1
    return np.exp2(np.maximum(np.where(x == 0, -24, exponent - 10), -24).astype(np.float64))


def widest_step(x: Array) -> Array:
    """What the scale of rows ``[..., D]`` is at most: a 255th of the range, with zero and scale rounded outwards."""
    spread = x.max(-1) - x.min(-1) + half_step(half_below(x.min(-1)))
    return spread / 255 * (1 + 2**-9) + 2**-24


def widest_error(x: Array, bits: int, fewest: int) -> Array:
    """How far what ``bits`` bits give back of rows ``[..., D]`` can be off."""
    return widest_step(x) * GROWTH[fewest] * 2 ** (8 - bits) / 2


class Coded(NamedTuple):
    """Rows as 8-bit codes ``[..., D]``, with a scale and a zero each (constant rows: scale 0)."""

    codes: Array
    scale: Array
    zero: Array

    def read(self, bits: int) -> Array:
        """What is read of the top ``bits`` bits of the codes: the centre of each one's bin."""
        members = 2 ** (8 - bits)
        return (self.codes // members * members + (members - 1) / 2) * self.scale[..., None] + self.zero[..., None]

    def distance(self, bits: tuple[int, int]) -> Array:
        """From what is read to what the codes stand for, squared, summed over both."""
        off = [(2 * (self.codes % 2 ** (8 - n)) - (2 ** (8 - n) - 1)) ** 2 for n in bits]
        return np.sum(off, axis=(0, -1)) * self.scale**2

    def strays(self, bits: tuple[int, int]) -> Array:
        """Whether what is read is off by more than what is off evenly within bins: its sum beyond two standard
        deviations, or that of its squares beyond 5/4 of the mean, for one of both."""
        found = np.zeros(self.codes.shape[:-1], bool)
        for members in (2 ** (8 - n) for n in bits):
            off = self.codes % members - (members - 1) / 2
            even = self.codes.shape[-1] * (members**2 - 1) / 12
            found |= (np.abs(off.sum(-1)) > 2 * np.sqrt(even)) | ((off**2).sum(-1) > 1.25 * even)
        return found


def over_range(x: Array, low: Array, high: Array) -> Coded:
    """The codes of rows over a range each."""
    zero = half_below(low)
    scale = -half_below(-(high - zero) / 255)
    return Coded(np.rint((x - zero[..., None]) / np.where(scale > 0, scale, 1)[..., None]), scale, zero)


def master_codes(x: Array, bits: tuple[int, int] = (8, 8)) -> Coded:
    """The codes of rows that are read with so many bits, at least and at most."""
    first = over_range(x, x.min(-1), x.max(-1))
    if bits[0] == 8:
        return first
    # All that decides is whole, so that nothing but the extension itself is rounded.
    members, rest = 2 ** (8 - bits[0]), x.shape[-1] - 2
    centres = np.arange(members - 1, 510, 2 * members) - 2 ** (8 - bits[1]) * (bits[0] < bits[1])  # in halves of a code
    bulk = first.codes.astype(np.int64).sum(-1) - 255
    upper = 2 * bulk > 255 * rest
    bulk = np.where(upper, 255 * rest - bulk, bulk)
    target = centres[(centres * rest >= 2 * bulk[..., None] - rest).argmax(-1)]
    by = np.maximum(target * rest - 2 * bulk, 0) / (rest * (510 - target)) * (255 * first.scale)
    low, high = x.min(-1) - np.where(upper, 0, by), x.max(-1) + np.where(upper, by, 0)
    second = over_range(x, np.maximum(low, -65504), high)
    closer = (second.distance(bits) < first.distance(bits)) & first.strays(bits)
    chosen = (np.where(closer, b, a) for a, b in zip(first[1:], second[1:], strict=True))
    return Coded(np.where(closer[..., None], second.codes, first.codes), *chosen)


def reading(x: Array, bits: int, of: tuple[int, int]) -> Array:
    """What is read, with ``bits`` bits, of rows ``[..., D]`` that are read with ``of`` bits, at least and at most."""
    return master_codes(x, of).read(bits)


def hadamard(head_dim: int) -> Array:
    """Sylvester matrices of the largest power of two that divides head_dim, on the diagonal."""
    block = next(b for b in (512, 256, 128, 64, 32, 16) if head_dim % b == 0)
    index = np.arange(head_dim)
    parity = [[bin(i & j & (block - 1)).count("1") % 2 for j in index] for i in index]
    same_block = index[:, None] // block == index // block
    return np.where(same_block, 1.0 - 2.0 * np.array(parity), 0.0) / np.sqrt(block)


@dataclass(frozen=True)
class Rule:
    """What of the configuration the read rule depends on."""

    page: int
    near_pages: int
    high: Tier
    low: Tier
    rotation: str
    scale: float
    mid: Tier | None = None
    cap: float = 0.0
    sinks: bool = False

    def scores(self, q: Array, k: Array) -> Array:
        """Of queries ``[n, D]`` and keys ``[m, D]``."""
        scores = q @ k.T * self.scale
        return self.cap * np.tanh(scores / self.cap) if self.cap else scores

    def stored(self, v: Array, bits: int) -> Array:
        """Values ``[..., D]`` as they come back from a record."""
        matrix = np.eye(v.shape[-1]) if self.rotation == "none" else hadamard(v.shape[-1])
        return reading(v @ matrix, bits, (self.low.value_bits, self.high.value_bits)) @ matrix

    def stored_keys(self, k: Array, bits: int) -> Array:
        """Keys ``[N, H, D]`` as they come back: each page is coded less the mean of its keys, rounded to float16."""
        matrix = np.eye(k.shape[-1]) if self.rotation == "none" else hadamard(k.shape[-1])
        out, of = np.zeros_like(k), (self.low.key_bits, self.high.key_bits)
        for start in range(0, len(k) - self.page + 1, self.page):
            page = k[start : start + self.page]
            centre = centre_of(page) @ matrix
            half = centre.astype(np.float32).astype(np.float16).astype(np.float64)
            out[start : start + self.page] = (reading(page @ matrix - half, bits, of) + half) @ matrix
        return out


def centre_of(keys: Array) -> Array:
    """The mean of keys ``[P, ..., D]``, in steps of 2^-16."""
    return np.rint(keys * 2**16).sum(0) / (2**16 * len(keys))


class View(NamedTuple):
    """Every token of a sequence as a tier would give it back, ``[N, H, D]``."""

    key: Array
    value: Array


def views(k: Array, v: Array, rule: Rule) -> dict[int, View]:
    """The readings of every token, by tier; without a format of its own, mid is low."""
    forms = {HIGH: rule.high, MID: rule.mid or rule.low, LOW: rule.low}
    return {
        tier: View(rule.stored_keys(k, form.key_bits), rule.stored(v, form.value_bits)) for tier, form in forms.items()
    }


def softmax(scores: Array, sinks: Array | None = None) -> Array:
    """Over the last axis; sinks, one a row, take their share and give it to nobody."""
    if sinks is not None:
        return softmax(np.concatenate([scores, sinks[:, None]], -1))[:, :-1]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def attention(q: Array, k: Array, v: Array, tiers: NDArray[np.uint8], rule: Rule) -> Array:
    """The read rule for one whole sequence.

    Args:
        q: ``[N, Hq, D]``.
        k, v: ``[N, H, D]``.
        tiers: ``[full pages, H, P]``.

    Returns:
        ``[N, Hq, Dv]``.
    """
    tokens, heads = k.shape[:2]
    group = q.shape[1] // heads
    seen = views(k, v, rule)
    out = np.empty((*q.shape[:2], v.shape[-1]))
    for t in range(tokens):
        own = t // rule.page
        raw = np.arange(own * rule.page, t + 1)
        near = np.arange(max(own - rule.near_pages, 0) * rule.page, own * rule.page)
        far = np.arange(max(own - rule.near_pages, 0) * rule.page)
        for h in range(heads):
            tier = tiers[:, h].reshape(-1)[far]
            read = {HIGH: np.concatenate([far[tier == HIGH], near]), MID: far[tier == MID], LOW: far[tier == LOW]}
            keys = np.concatenate([k[raw, h], *(seen[name].key[at, h] for name, at in read.items())])
            values = np.concatenate([v[raw, h], *(seen[name].value[at, h] for name, at in read.items())])
            queries = slice(h * group, (h + 1) * group)
            sinks = np.sin(np.arange(q.shape[1]))[queries] * 4 if rule.sinks else None
            out[t, queries] = softmax(rule.scores(q[t, queries], keys), sinks) @ values
    return out


def mean_attention(q: Array, k: Array, rule: Rule) -> Array:
    """Significance of the tokens of full pages, ``[pages, H, P]``: see ``leankv_kernels.reference.commit``."""
    pages, heads, page = len(k) // rule.page, k.shape[1], rule.page
    group = q.shape[1] // heads
    result = np.zeros((pages, heads, page))
    for p in range(pages):
        here = slice(p * page, (p + 1) * page)
        for query_head in range(q.shape[1]):
            received, uniform = np.zeros(page), np.zeros(page)
            for i in range(page):
                keys = k[here, query_head // group][: i + 1]
                received[: i + 1] += softmax(rule.scores(q[here, query_head][i], keys))
                uniform[: i + 1] += 1 / (i + 1)
            head = result[p, query_head // group]
            np.maximum(head, received / uniform, out=head)
    return result
