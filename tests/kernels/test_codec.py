"""Master codes, packing and rotation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from leankv_kernels.layout import bin_centre, bin_width
from leankv_kernels.reference.codec import pack, quantize, rotate, unpack
from tests.kernels import dense
from tests.kernels.draws import HEAD_DIMS, generator
from tests.kernels.kernelutil import few

FP16_MAX = 65504.0
ROUNDING = 1e-11
"""Room for float64 itself near 65504, far below half of the smallest float16 step."""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


WILD = {
    "normal": normal(0, 64, 64),
    "large common offset": normal(1, 64, 64) * 1e-3 + normal(2, 64, 1) * 20_000,
    "constant, not a float16": normal(3, 64, 1).expand(64, 64),
    "constant float16": normal(4, 64, 1).half().double().expand(64, 64),
    "zeros": torch.zeros(4, 64, dtype=torch.float64),
    "negative zeros": -torch.zeros(4, 64, dtype=torch.float64),
    "tiny": normal(5, 64, 64) * 10 ** -torch.arange(3, 35, 0.5, dtype=torch.float64)[:, None],
    "tiny and positive": normal(6, 64, 64).abs() * 1e-8,
    "near the largest float16": FP16_MAX - normal(7, 64, 64).abs(),
    "near the smallest float16": -FP16_MAX + normal(8, 64, 64).abs(),
    "both ends of float16": FP16_MAX * normal(9, 64, 64).sign(),
    "one outlier channel": normal(10, 64, 64) + 30_000 * torch.eye(64, dtype=torch.float64),
    "one negative outlier channel": normal(11, 64, 64) - 30_000 * torch.eye(64, dtype=torch.float64),
    "one channel away from zero": torch.eye(64, dtype=torch.float64) * 1e-3,
}


READ = ((8, 8), (4, 8), (4, 4), (2, 4), (2, 2))
"""Bits with which rows are read, at least and at most."""


def check_quantized(x: Tensor, bits: tuple[int, int] = (8, 8)) -> None:
    """Half a step of error at most, with a step hardly wider than a 255th of the range."""
    codes, scale, zero = quantize(x, bits)
    assert codes.dtype == torch.uint8
    assert scale.dtype == zero.dtype == torch.float16
    s, z = scale.double(), zero.double()
    error = (x - (codes.double() * s[..., None] + z[..., None])).abs()
    assert bool((error <= s[..., None] / 2 + ROUNDING).all())
    assert (s.numpy() <= dense.widest_step(x.numpy()) * dense.GROWTH[bits[0]]).all()
    assert bool((z <= x.amin(-1)).all())


@pytest.mark.parametrize("bits", READ, ids=str)
@pytest.mark.parametrize("kind", WILD)
def test_no_channel_is_off_by_more_than_half_a_step(kind: str, bits: tuple[int, int]) -> None:
    check_quantized(WILD[kind], bits)


@few(150)
@given(st.lists(st.floats(-FP16_MAX, FP16_MAX), min_size=16, max_size=16))
def test_half_a_step_for_any_sixteen_numbers(row: list[float]) -> None:
    for bits in READ:
        check_quantized(torch.tensor(row, dtype=torch.float64), bits)


@few(60)
@given(st.floats(-FP16_MAX, FP16_MAX), st.floats(1e-9, 10.0), st.integers(0, 10_000))
def test_half_a_step_around_any_offset(offset: float, spread: float, seed: int) -> None:
    check_quantized((offset + spread * normal(seed, 8, 80)).clamp(-FP16_MAX, FP16_MAX))


@pytest.mark.parametrize("bits", READ, ids=str)
@pytest.mark.parametrize("kind", WILD)
def test_codes_are_those_of_the_specification(kind: str, bits: tuple[int, int]) -> None:
    for got, wanted in zip(quantize(WILD[kind], bits), dense.master_codes(WILD[kind].numpy(), bits), strict=True):
        assert np.array_equal(got.double().numpy(), wanted)


def come_back(x: Tensor, bits: tuple[int, int], read: int) -> Tensor:
    """Rows ``[..., D]`` rotated, coded, read with so many bits, and rotated back."""
    codes, scale, zero = quantize(rotate(x, "hadamard"), bits)
    step, offset = bin_centre(read)
    held = (codes // bin_width(read) * step + offset) * scale.double()[..., None] + zero.double()[..., None]
    return rotate(held, "hadamard")


@pytest.mark.parametrize("bits", READ[1:], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
@pytest.mark.parametrize("noise", [0.0, 1e-3, 1e-2, 0.05])
@pytest.mark.parametrize("level", [1.0, -3.0, 3000.0])
def test_nearly_equal_channels_come_back(level: float, noise: float, head_dim: int, bits: tuple[int, int]) -> None:
    """Rotated they are one spike each block; what the other channels are off by adds up in one channel. Read at the
    centres of end bins that was 1.6 times the value with four bits, 7.5 times with two.
    """
    x = level * (1 + noise * normal(head_dim, 64, head_dim))
    # Beside four bits two are read a quarter of a bin off, since tokens that are read with four matter more.
    most = {2: 0.8 if bits[1] == 2 else 2.5 * head_dim / 64, 4: 0.8, 8: 0.5}
    for read in set(bits):
        assert (come_back(x, bits, read) - x).abs().max() <= most[read] * abs(level)


@pytest.mark.parametrize("bits", READ[1:], ids=str)
def test_patterns_of_two_levels_come_back(bits: tuple[int, int]) -> None:
    """The bulk in the middle of the range, or near its top."""
    alternating = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(32)
    for x in (alternating, alternating - 1, 2 + alternating, -4 - alternating, 1 + 3 * alternating):
        x = x + 1e-2 * normal(7, 16, 64)
        for read, most in ((2, 0.6 if bits[1] == 2 else 2.5), (4, 0.5), (8, 0.1)):
            if read in bits:
                assert (come_back(x, bits, read) - x).abs().max() <= most * x.abs().max()


@few(100)
@given(st.integers(0, 10_000), st.sampled_from(READ[1:]), st.floats(0, 2), st.floats(0.01, 30))
def test_a_second_coding_is_kept_only_where_it_reads_closer(
    seed: int, bits: tuple[int, int], spike: float, spread: float
) -> None:
    x = spread * normal(seed, 16, 64)
    x[:, 0] += 100 * spike

    def off(held: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        codes, scale, _ = (part.double() for part in held)
        read = [(codes // bin_width(n) * bin_centre(n)[0] + bin_centre(n)[1] - codes) for n in bits]
        return sum(r.square().sum(-1) for r in read) * scale.square()

    assert bool((off(quantize(x, bits)) <= off(quantize(x)) * (1 + 1e-9)).all())


def test_values_beyond_float16_saturate() -> None:
    x = torch.tensor([[1e6, 0.0, -3e38, float("inf")] * 4], dtype=torch.float64)
    codes, scale, zero = quantize(x)
    read = codes.double() * scale.double()[:, None] + zero.double()[:, None]
    assert bool(((read - x.clamp(-FP16_MAX, FP16_MAX)).abs() <= scale.double() / 2).all())


def test_a_token_does_not_see_its_neighbours() -> None:
    """Scales are per token: quantizing rows together or alone gives the same."""
    x = torch.cat([WILD["normal"], WILD["one outlier channel"]])
    together = quantize(x)
    for i in (0, 63, 64, 127):
        for all_rows, one in zip(together, quantize(x[i]), strict=True):
            assert torch.equal(all_rows[i], one)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("width", range(16, 257, 16))
def test_unpack_inverts_pack(bits: int, width: int) -> None:
    codes = torch.randint(0, 1 << bits, (3, 5, width), generator=generator(width), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, 5, width * bits // 8)
    assert torch.equal(unpack(packed, bits, width), codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packing_is_planar(bits: int) -> None:
    """Byte i holds channels i, i + n, i + 2n ..., lowest bits first."""
    codes = torch.randint(0, 1 << bits, (80,), generator=generator(bits), dtype=torch.uint8).tolist()
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist()
    n = len(packed)
    for i, byte in enumerate(packed):
        assert byte == sum(code << (bits * plane) for plane, code in enumerate(codes[i::n]))


def test_packing_leaves_its_input_alone() -> None:
    codes = torch.full((16,), 3, dtype=torch.uint8)
    pack(codes, 2)
    assert codes.tolist() == [3] * 16


def test_no_bits_pack_to_no_bytes() -> None:
    packed = pack(torch.ones(3, 16, dtype=torch.uint8), 0)
    assert packed.shape == (3, 0)
    assert torch.equal(unpack(packed, 0, 16), torch.zeros(3, 16, dtype=torch.uint8))


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
def test_a_code_is_read_at_the_centre_of_its_bin(bits: int) -> None:
    step, offset = bin_centre(bits)
    for code in range(1 << bits):
        members = [master for master in range(256) if master >> (8 - bits) == code]
        assert step * code + offset == sum(members) / len(members)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotation_is_the_blockwise_hadamard_matrix_and_its_own_inverse(head_dim: int) -> None:
    matrix = rotate(torch.eye(head_dim), "hadamard")
    np.testing.assert_allclose(matrix.numpy(), dense.hadamard(head_dim), atol=1e-15)
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix @ matrix, torch.eye(head_dim, dtype=torch.float64), atol=1e-14, rtol=0)
    x = normal(head_dim, 7, head_dim)
    torch.testing.assert_close(rotate(rotate(x, "hadamard"), "hadamard"), x, atol=1e-13, rtol=0)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("kind", ["hadamard", "none"])
def test_rotation_preserves_every_product_of_query_and_key(head_dim: int, kind: str) -> None:
    q, k = normal(1, 9, head_dim), normal(2, 11, head_dim)
    torch.testing.assert_close(rotate(q, kind) @ rotate(k, kind).T, q @ k.T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rotation_spreads_an_outlier_channel(head_dim: int) -> None:
    """What it is for: a channel that sticks out no longer sets the step of all others."""
    x = normal(3, 64, head_dim)
    x[:, 5] += 100
    plain, rotated = (quantize(rotate(x, kind))[1].double().mean() for kind in ("none", "hadamard"))
    assert float(rotated) < 0.6 * float(plain)


def test_rotation_none_changes_nothing() -> None:
    x = normal(4, 5, 64).bfloat16()
    assert torch.equal(rotate(x, "none"), x.double())


def test_unknown_rotation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'fourier'.*hadamard or none"):
        rotate(normal(5, 1, 64), "fourier")
