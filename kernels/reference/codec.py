"""Master codes, packing and rotation: how one token's key or value becomes bytes and comes back."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

MASTER_BITS = 8
_FP16_MAX = 65504.0


def _half_floor(x: Tensor) -> Tensor:
    """The largest float16 that is at most ``x`` (float64)."""
    half = x.to(torch.float16)
    bits = half.view(torch.int16)
    below = torch.where(half > 0, bits - 1, torch.where(half < 0, bits + 1, torch.full_like(bits, -32767)))
    return torch.where(half.to(x.dtype) > x, below, bits).view(torch.float16)


def quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eight-bit asymmetric codes per token over the channels (paper section 4.1).

    Scale and zero are rounded to storage precision first, and outwards, so no channel is ever clipped however large a
    common offset is: ``|x - (code * scale + zero)| <= scale / 2`` for |x| <= 65504.

    Args:
        x: float64 ``[..., D]``.

    Returns:
        codes uint8 ``[..., D]``; scale and zero float16 ``[...]``. A code k stands for ``k * scale + zero``.
    """
    x = x.clamp(-_FP16_MAX, _FP16_MAX)
    zero = _half_floor(x.amin(-1))
    from_zero = x - zero.to(x.dtype)[..., None]
    scale = -_half_floor(-from_zero.amax(-1) / (2**MASTER_BITS - 1))
    step = scale.to(x.dtype)[..., None]
    codes = (from_zero / torch.where(step > 0, step, torch.ones_like(step))).round()
    return codes.to(torch.uint8), scale, zero


def bin_centre(bits: int) -> tuple[int, float]:
    """``(step, offset)`` in master codes: a code ``q`` of ``bits`` bits is read as ``step * q + offset``."""
    step = 1 << (MASTER_BITS - bits)
    return step, (step - 1) / 2


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


def _hadamard(n: int) -> Tensor:
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / n**0.5


@lru_cache(maxsize=32)
def rotation_matrix(head_dim: int, kind: str, device: torch.device) -> Tensor | None:
    """Orthonormal symmetric float64 ``[D, D]`` applied to keys, queries and values before quantizing.

    ``hadamard``: blocks of the largest power of two that divides ``head_dim`` (80 channels: five blocks of 16).
    ``none``: no rotation, returns None.

    Raises:
        ValueError: for another ``kind``.
    """
    if kind == "none":
        return None
    if kind != "hadamard":
        raise ValueError(f"rotation {kind!r} is not known: use hadamard or none")
    block = head_dim & -head_dim
    return torch.block_diag(*[_hadamard(block)] * (head_dim // block)).to(device)


def rotate(x: Tensor, kind: str) -> Tensor:
    """``x`` in float64 ``[..., D]``, rotated; applying it twice gives ``x`` back (the matrix is symmetric)."""
    x = x.to(torch.float64)
    matrix = rotation_matrix(x.shape[-1], kind, x.device)
    return x if matrix is None else x @ matrix
