"""Device helpers on numbers: Hadamard rotation, two-halves products, and merging of softmax states."""

# mypy: allow-untyped-defs

from __future__ import annotations

import triton
import triton.language as tl

from leankv_kernels.reference.codec import rotation_block
from leankv_kernels.triton.config import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)
FP16_MAX = tl.constexpr(65504.0)
"""At which keys and values saturate."""
_TANH_ONE = tl.constexpr(7.90531111)
"""From where on tanh is 1."""
LOW_SCALE = tl.constexpr(2048.0)
"""What the lower half of a number is scaled by, so that it stays clear of fp16's smallest numbers."""


def rotation_log(head_dim: int, kind: str) -> int:
    """Log of the size of the Hadamard matrices that rotate a head (see ``reference.codec.rotate``), 0 for none.

    Raises:
        ValueError: for a rotation that is not known.
    """
    if kind not in ("hadamard", "none"):
        raise ValueError(f"rotation {kind!r} is not known: use hadamard or none")
    return rotation_block(head_dim).bit_length() - 1 if kind == "hadamard" else 0


@triton.jit
def hadamard(x, LOG: tl.constexpr):
    """Rows ``[R, D]`` times the Sylvester matrix of ``2**LOG`` channels on the diagonal, not normalized.

    Additions in one order, so a row's result depends on the row alone.
    """
    R: tl.constexpr = x.shape[0]
    D: tl.constexpr = x.shape[1]
    for stage in tl.static_range(LOG):
        pairs = tl.permute(tl.reshape(x, (R, D // (2 << stage), 2, 1 << stage)), (0, 1, 3, 2))
        a, b = tl.split(pairs)
        x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)), (R, D))
    return x


@triton.jit
def powers(x):
    """For numbers not below 0, the power of two above each, and its inverse: what brings rows into fp16's range."""
    exponent = tl.minimum((x.to(tl.int32, bitcast=True) >> 23) & 0xFF, 252)
    above, inverse = (exponent + 1) << 23, (253 - exponent) << 23
    return above.to(tl.float32, bitcast=True), inverse.to(tl.float32, bitcast=True)


@triton.jit
def halves(x):
    """A float32 number in two fp16 numbers: ``high + low / LOW_SCALE``, 22 bits."""
    high = x.to(tl.float16)
    return high, ((x - high.to(tl.float32)) * LOW_SCALE).to(tl.float16)


@triton.jit
def stacked(x):
    """Rows ``[R, N]`` as ``[2 R, N]``: all high halves, then all low ones. A product takes both at once."""
    high, low = halves(x)
    return tl.reshape(tl.permute(tl.join(high, low), (2, 0, 1)), (2 * x.shape[0], x.shape[1]))


@triton.jit
def twice(x):
    """``[R]`` as ``[2 R]``, for both halves of every row."""
    return tl.reshape(tl.permute(tl.join(x, x), (1, 0)), (2 * x.shape[0],))


@triton.jit
def unstacked(x):
    """Products ``[2 R, N]`` of stacked rows as ``[R, N]``."""
    R: tl.constexpr = x.shape[0] // 2
    high, low = tl.split(tl.permute(tl.reshape(x, (2, R, x.shape[1])), (1, 2, 0)))
    return tl.fma(low, 1.0 / LOW_SCALE, high)


@triton.jit
def product(a, b, acc):
    """``acc + a @ b`` in float32.

    A GPU multiplies every row alike, wherever it lies in a tile. Numpy, with which the interpreter multiplies, does
    not, and is given float64, whose rounding float32 does not show.
    """
    if _INTERPRETED:
        out = (tl.dot(a.to(tl.float32).to(tl.float64), b.to(tl.float32).to(tl.float64)) + acc).to(tl.float32)
    elif a.dtype == tl.float32:
        out = tl.dot(a, b, acc, input_precision="ieee")
    else:
        out = tl.dot(a, b, acc)
    return out


@triton.jit
def row_sums(x):
    """Sums over ``[R, N]`` by a product with ones, and so in one order, whatever the tile's layout."""
    above, inverse = powers(tl.max(tl.abs(x), 1))
    column = tl.arange(0, 32)[None, :] + tl.full((x.shape[1], 1), 0, tl.int32)
    none = tl.full((2 * x.shape[0], 32), 0.0, tl.float32)
    sums = unstacked(product(stacked(x * inverse[:, None]), (column == 0).to(tl.float16), none))
    return tl.sum(tl.where(tl.arange(0, 32)[None, :] == 0, sums, 0.0), 1) * above


@triton.jit
def capped(x, CAP: tl.constexpr):
    """Scores drawn into (-CAP, CAP): ``CAP * tanh(x / CAP)`` to 4e-7 of it, by a rational function; what is no number
    stays none.
    """
    u = x * (1.0 / CAP)
    u = tl.where(u < -_TANH_ONE, -_TANH_ONE, tl.where(u > _TANH_ONE, _TANH_ONE, u))
    s = u * u
    p = tl.fma(s, -2.76076847742355e-16, 2.00018790482477e-13)
    p = tl.fma(p, s, -8.60467152213735e-11)
    p = tl.fma(p, s, 5.12229709037114e-08)
    p = tl.fma(p, s, 1.48572235717979e-05)
    p = tl.fma(p, s, 6.37261928875436e-04)
    p = tl.fma(p, s, 4.89352455891786e-03)
    q = tl.fma(s, 1.19825839466702e-06, 1.18534705686654e-04)
    q = tl.fma(q, s, 2.26843463243900e-03)
    q = tl.fma(q, s, 4.89352518554385e-03)
    return u * (p / q) * CAP


@triton.jit
def finite(peak):
    """A peak that may be subtracted: 0 where nothing was read."""
    return tl.where(peak == -float("inf"), 0.0, peak)


@triton.jit
def merged(peak_a, sum_a, out_a, peak_b, sum_b, out_b):
    """Two softmax states ``[R]``, ``[R]``, ``[R, D]`` in base 2 as one; exact where one of them is empty."""
    peak = tl.maximum(peak_a, peak_b)
    a, b = tl.exp2(peak_a - finite(peak)), tl.exp2(peak_b - finite(peak))
    return peak, tl.fma(sum_a, a, sum_b * b), tl.fma(out_a, a[:, None], out_b * b[:, None])
