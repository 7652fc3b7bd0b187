"""Master codes, packing and rotation: how one token's key or value becomes bytes and comes back."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leankv_kernels.layout import MASTER_BITS, bin_width

__all__ = ["FP16_MAX", "centre_of", "pack", "quantize", "rotate", "rotation_block", "unpack"]

FP16_MAX = 65504.0
"""At which keys and values saturate."""
_CENTRE_STEPS = 65536.0


def _half_floor(x: Tensor) -> Tensor:
    """The largest float16 that is at most ``x`` (float64)."""
    half = x.to(torch.float16)
    bits = half.view(torch.int16)
    below = torch.where(half > 0, bits - 1, torch.where(half < 0, bits + 1, torch.full_like(bits, -32767)))
    return torch.where(half.to(x.dtype) > x, below, bits).view(torch.float16)


def quantize(x: Tensor, bits: tuple[int, int] = (MASTER_BITS, MASTER_BITS)) -> tuple[Tensor, Tensor, Tensor]:
    """Eight-bit asymmetric codes per token over the channels (paper section 4.1).

    Scale and zero are rounded to storage precision first, and outwards, so no channel is ever clipped however large a
    common offset is: ``|x - (code * scale + zero)| <= scale / 2`` for |x| <= 65504.

    A row that is read with fewer bits, and off from what is read of it by more than chance explains, is coded again,
    over a range extended on one side, so that the bulk of the channels comes to lie at the centre of a bin. The second
    coding stays where its readings are closer, by the sum of squared distances. Else a row whose range is one outlier,
    as a token of nearly equal channels is once rotated, would be off by the same in all other channels, which adds up
    in one when it is rotated back.

    Args:
        x: float64 ``[..., D]``.
        bits: with how many rows are read, at least and at most.

    Returns:
        codes uint8 ``[..., D]``; scale and zero float16 ``[...]``. A code k stands for ``k * scale + zero``.
    """
    # Adding zero turns negative zeros into positive ones: one value, one code.
    x = x.clamp(-FP16_MAX, FP16_MAX) + 0.0
    low, high = x.amin(-1), x.amax(-1)
    codes, scale, zero = _code(x, low, high)
    widths = tuple(bin_width(n) for n in bits)
    if widths[0] > 1:
        below, above = _extension(codes, scale, widths)
        other = _code(x, (low - below).clamp(min=-FP16_MAX), high + above)
        closer = _distance(*other[:2], widths) < _distance(codes, scale, widths)
        closer &= _strays(codes, widths)
        codes = torch.where(closer[..., None], other[0], codes)
        scale, zero = torch.where(closer, other[1], scale), torch.where(closer, other[2], zero)
    return codes.to(torch.uint8), scale, zero


def _code(x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes int32, scale and zero of rows over a range."""
    zero = _half_floor(low)
    scale = -_half_floor(-(high - zero.to(x.dtype)) / (2**MASTER_BITS - 1))
    step = scale.to(x.dtype)[..., None]
    codes = ((x - zero.to(x.dtype)[..., None]) / torch.where(step > 0, step, torch.ones_like(step))).round()
    return codes.to(torch.int32), scale, zero


def _strays(codes: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Which rows are off from what is read of them by more than chance explains: were channels off evenly within bins
    of so many codes, their sum would be beyond two standard deviations (one row of 22), or that of their squares beyond
    5/4 of its mean (one of 75, at 64 channels)."""
    strays = torch.zeros(codes.shape[:-1], dtype=torch.bool, device=codes.device)
    for width in widths:
        off, even = 2 * (codes & (width - 1)) - (width - 1), codes.shape[-1] * (width * width - 1)
        strays |= (3 * off.sum(-1).square() > 4 * even) | (12 * off.square().sum(-1) > 5 * even)
    return strays


def _extension(codes: Tensor, scale: Tensor, widths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """By how much a row's range is extended, float64 ``[...]``, below or above, for bins of so many codes.

    Integers are exact, so every backend extends alike. The bulk is the mean of a row's codes without the two ends of
    its range, counted from the nearer one; it is moved away from there, to the first centre of a widest bin at most
    half a code before. Where there are narrower bins too it is that of the last such bin before, since what is read
    with more bits matters more. All in halves of a code.
    """
    width, rest, most = widths[0], codes.shape[-1] - 2, 2**MASTER_BITS - 1
    bulk = codes.sum(-1) - most  # times rest
    upper = 2 * bulk > most * rest
    bulk = torch.where(upper, most * rest - bulk, bulk)
    first, bin_ = width - 1 - widths[1] * (widths[1] < width), 2 * width * rest
    past = (2 * bulk - (1 + first) * rest).clamp(min=0)
    centre = first + 2 * width * torch.div(past + bin_ - 1, bin_, rounding_mode="floor")
    way = (centre * rest - 2 * bulk).clamp(min=0)
    extension = way.double() / (rest * (2 * most - centre)).double() * (most * scale.double())
    none = torch.zeros_like(extension)
    return torch.where(upper, none, extension), torch.where(upper, extension, none)


def _distance(codes: Tensor, scale: Tensor, widths: tuple[int, ...]) -> Tensor:
    """Of rows from what is read of them, squared, in halves of a code: float64, exact."""
    total = torch.zeros_like(codes)
    for width in widths:
        total += (2 * (codes & (width - 1)) - (width - 1)).square()
    return total.sum(-1).double() * scale.double().square()


def out_of_range(raw: Tensor, rotated: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows ``[..., D]`` saturate, of them as they are coded, and which are not finite, as they came."""
    return (rotated.abs() > FP16_MAX).any(-1), ~raw.isfinite().all(-1)


def centre_of(keys: Tensor, rotation: str) -> Tensor:
    """What the keys of a page have in common: their mean, rotated, in float16.

    Models with biased or very uneven key channels have keys that differ little from each other; coded as they are, four
    bits break them. Summed in steps of 2^-16, so that the order of the sum does not matter.

    Args:
        keys: not rotated, ``[..., P, D]``, clamped to float16's range.
        rotation: see :func:`rotate`.

    Returns:
        float16 ``[..., D]``.
    """
    steps = (keys.to(torch.float64).clamp(-FP16_MAX, FP16_MAX) * _CENTRE_STEPS).round().to(torch.int64)
    mean = steps.sum(-2).to(torch.float64) / (_CENTRE_STEPS * keys.shape[-2])
    # Halves are rounded from float32, as every backend can, and have one zero.
    return rotate(mean, rotation).clamp(-FP16_MAX, FP16_MAX).to(torch.float32).to(torch.float16) + 0.0


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack ``[..., D]`` uint8 codes below ``2**bits`` into ``[..., D * bits / 8]`` bytes.

    Planar: byte i holds channels i, i + n, i + 2n ... (n = the number of bytes), lowest bits first, so that one shift
    and mask of a whole register yields neighbouring channels.
    """
    if bits == 0:
        return codes[..., :0]
    per_byte = 8 // bits
    planes = codes.unflatten(-1, (per_byte, codes.shape[-1] // per_byte))
    out = planes[..., 0, :].clone()
    for i in range(1, per_byte):
        out |= planes[..., i, :] << (bits * i)
    return out


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """The inverse of :func:`pack`: ``[..., width * bits / 8]`` bytes to uint8 codes ``[..., width]``."""
    if bits == 0:
        return packed.new_zeros((*packed.shape[:-1], width))
    if bits == 8:
        return packed
    out = packed.new_empty((*packed.shape[:-1], width))
    for i, plane in enumerate(out.split(packed.shape[-1], dim=-1)):
        torch.bitwise_and(packed >> (bits * i), (1 << bits) - 1, out=plane)
    return out


def rotation_block(head_dim: int) -> int:
    """Channels that are rotated together: the largest power of two that divides ``head_dim``, 16 of 80."""
    return head_dim & -head_dim


def rotate(x: Tensor, kind: str) -> Tensor:
    """``x`` in float64 ``[..., D]``, rotated; applying it twice gives ``x`` back.

    ``hadamard`` multiplies every block of channels with a normalized Hadamard matrix, by butterflies: sums of two, in
    this order, so that a fast backend can give the same bits. ``none`` changes nothing.

    Raises:
        ValueError: for another ``kind``.
    """
    x = x.to(torch.float64)
    if kind == "none":
        return x
    if kind != "hadamard":
        raise ValueError(f"rotation {kind!r} is not known: use hadamard or none")
    block = rotation_block(x.shape[-1])
    span = 1
    while span < block:
        low, high = x.unflatten(-1, (-1, 2, span)).unbind(-2)
        x = torch.stack([low + high, low - high], dim=-2).flatten(-3)
        span *= 2
    return x * (1 / math.sqrt(block))
