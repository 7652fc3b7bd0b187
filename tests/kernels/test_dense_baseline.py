"""The dense bf16 kernel that benches compare with: against torch, by every instruction set and by both products."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from leankv_kernels.cpu.extension import _cpu
from tests.kernels.draws import generator
from tests.kernels.kernelutil import dice, few

SPLIT = 4096
"""Tokens that one thread reads on its own: kDenseSplit."""
WAYS = [(_cpu.isas()[0], True), *((isa, False) for isa in _cpu.isas())]


@pytest.fixture(scope="module", params=WAYS, ids=str)
def cpu_bf16(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Chooses an instruction set; whether to use the CPU's bf16 products, which only the best one has."""
    before = _cpu.isa()
    isa, bf16 = request.param
    _cpu.use_isa(isa)
    yield bf16
    _cpu.use_isa(before)


def inputs(batch: int, heads: int, group: int, tokens: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Peaked attention over keys with an offset, and values with one channel that sticks out."""
    g = generator(seed)
    q = torch.randn(batch, heads * group, dim, generator=g) * 2.5
    k, v = torch.randn(2, batch, heads, tokens, dim, generator=g)
    v[..., 0] += 20
    return q.bfloat16(), (k + torch.arange(dim).cos() * 3).bfloat16(), v.bfloat16()


def decode(q: Tensor, k: Tensor, v: Tensor, cpu_bf16: bool, threads: int = 2) -> Tensor:
    """Runs the kernel."""
    out = torch.full(q.shape, float("nan"))
    _cpu.dense_decode(q, k, v, out, scale=q.shape[2] ** -0.5, threads=threads, cpu_bf16=cpu_bf16)
    return out


def check(shape: tuple[int, int, int, int, int], cpu_bf16: bool, seed: int = 0) -> None:
    """Weights as good as float32, or rounded to bf16, which moves each by up to 2^-9 of itself."""
    q, k, v = inputs(*shape, seed=seed)
    want = scaled_dot_product_attention(q.double()[:, :, None], k.double(), v.double(), enable_gqa=True)[:, :, 0]
    error = (decode(q, k, v, cpu_bf16) - want).abs().amax((0, 1))
    spread = (v.double().amax((0, 1, 2)) - v.double().amin((0, 1, 2))).clamp(min=1)
    assert bool((error <= spread * (2**-8 if cpu_bf16 else 2**-14)).all())


def random_shape(rng: Random) -> tuple[int, int, int, int, int]:
    """Any group and width, contexts of a few blocks that seldom end with one."""
    dim = rng.choice((64, 128, 16 * rng.randint(1, 16)))
    return rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 8), rng.randint(1, 200), dim


@few(40)
@given(rng=dice)
def test_it_is_attention(cpu_bf16: bool, rng: Random) -> None:
    check(random_shape(rng), cpu_bf16, seed=rng.getrandbits(32))


@pytest.mark.parametrize("tokens", [1, SPLIT - 1, SPLIT, SPLIT + 1, 2 * SPLIT + 100])
def test_it_joins_splits(cpu_bf16: bool, tokens: int) -> None:
    check((1, 2, 3, tokens, 64), cpu_bf16)


def test_threads_and_batch_change_no_bit(cpu_bf16: bool) -> None:
    q, k, v = inputs(3, 2, 5, SPLIT + 300, 80)
    alone = torch.cat([decode(q[i : i + 1], k[i : i + 1], v[i : i + 1], cpu_bf16, threads=1) for i in range(3)])
    assert torch.equal(decode(q, k, v, cpu_bf16, threads=4), alone)


def test_it_reads_no_further_than_the_context(cpu_bf16: bool) -> None:
    """What lies behind the last row, as NaN, would show."""
    q, k, v = inputs(1, 1, 4, 50, 80)
    k[:, :, 37:], v[:, :, 37:] = float("nan"), float("nan")
    assert bool(decode(q, k[:, :, :37], v[:, :, :37], cpu_bf16).isfinite().all())


@pytest.mark.parametrize(
    ("group", "tokens", "dim", "says"),
    [(9, 1, 64, "group"), (0, 1, 64, "group"), (1, 0, 64, "token"), (1, 1, 72, "width"), (1, 1, 272, "width")],
)
def test_other_shapes_are_refused(cpu_bf16: bool, group: int, tokens: int, dim: int, says: str) -> None:
    with pytest.raises(ValueError, match=rf"^.*{says}.*\.$"):
        decode(*inputs(1, 1, group, tokens, dim), cpu_bf16)


def test_the_reading_of_memory_reads_all_of_it(cpu_bf16: bool) -> None:
    words = torch.arange(3 << 14, dtype=torch.int32)
    assert _cpu.read_bandwidth(words, 2) == int(words.long().sum())
