"""Attention over the last raw keys: against a softmax written out, and the same bits however queries come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from hypothesis import given
from torch import Tensor

from leankv_kernels import Ops, get_ops
from tests.kernels.cases import MODEL_DTYPES
from tests.kernels.draws import INTERPRETED, generator
from tests.kernels.kernelutil import Backend, backend_named, dice, few

pytestmark = pytest.mark.skipif(INTERPRETED, reason="no kernel of Triton's")
WINDOWS = (0, 1, 15, 16, 17, 31, 40, 1000, -1)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module", params=["cpu-avx512", "cpu-avx2", "cpu-portable"])
def fast(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Every instruction set."""
    with backend_named(request.param) as backend:
        yield backend


@dataclass(frozen=True)
class Layer:
    """A pool and a sequence of queries whose keys lie in it, a slot a position."""

    q: Tensor  # [N, Hq, Dk]
    key: Tensor
    value: Tensor
    place: Tensor  # [N]
    window: int
    cap: float = 0.0
    sinks: Tensor | None = None

    @property
    def scale(self) -> float:
        return float(self.q.shape[2] ** -0.5)

    def least(self, first: int) -> int:
        """The first position that a query sees."""
        return max(first - self.window, 0) if self.window >= 0 else 0

    def run(self, ops: Ops, spans: list[tuple[int, int]], dtype: torch.dtype | None = None, spare: int = 0) -> Tensor:
        """One forward of queries ``[first, stop)``, a request each, which may have more slots than it needs."""
        starts = [max(self.least(first) - spare, 0) for first, _ in spans]
        slots = [self.place[start:stop] for start, (_, stop) in zip(starts, spans, strict=True)]
        q = torch.cat([self.q[first:stop] for first, stop in spans])
        counts = torch.tensor([0, *(stop - first for first, stop in spans)]).cumsum(0)
        lengths = torch.tensor([0, *map(len, slots)]).cumsum(0)
        options = (self.window, self.scale, self.cap, self.sinks, dtype)
        args = (q, self.key, self.value, torch.cat(slots), counts.tolist(), lengths, torch.tensor(starts))
        return ops.attend_window(*args, *options)


def layer(
    rng: Random,
    length: int,
    group: int | None = None,
    dims: tuple[int, int] | None = None,
    dtype: torch.dtype | None = None,
) -> Layer:
    """Any window, cap and sinks."""
    g, heads = generator(rng.getrandbits(32)), rng.randint(1, 3)
    group = group or rng.choice((*range(1, 9), 13, 40))
    key_dim, value_dim = dims or (rng.choice((64, 80, 128, 192, 256, 512)), rng.choice((64, 128, 208)))
    dtype, room = dtype or rng.choice(MODEL_DTYPES), length + rng.randint(0, 9)
    q = torch.randn(length, heads * group, key_dim, generator=g).to(dtype) * rng.choice((0.1, 1.0, 4.0))
    key, value = (torch.randn(room, heads, dim, generator=g).to(dtype) for dim in (key_dim, value_dim))
    place = torch.randperm(room, generator=g)[:length]
    sinks = torch.randn(heads * group, generator=g) * 3 if rng.random() < 0.5 else None
    return Layer(q, key, value, place, rng.choice(WINDOWS), rng.choice((0.0, 0.0, 5.0, 50.0)), sinks)


def written_out(x: Layer) -> Tensor:
    """Token by token and head by head."""
    out = torch.empty(*x.q.shape[:2], x.value.shape[2], dtype=torch.float64)
    group = x.q.shape[1] // x.key.shape[1]
    for p, query in enumerate(x.q.double()):
        seen = x.place[x.least(p) : p + 1]
        for head in range(len(query)):
            scores = x.key[seen, head // group].double() @ query[head] * x.scale
            scores = x.cap * torch.tanh(scores / x.cap) if x.cap else scores
            sink = scores.new_full((1,), -INF) if x.sinks is None else x.sinks[head : head + 1].double()
            out[p, head] = torch.cat([scores, sink]).softmax(0)[:-1] @ x.value[seen, head // group].double()
    return out


@few(30)
@given(rng=dice)
def test_the_specification_is_a_softmax_over_the_window(ops: Ops, rng: Random) -> None:
    x = layer(rng, rng.choice((1, rng.randint(2, 40))), dims=(64, 48))
    got = x.run(ops, [(0, len(x.q))], torch.float64)
    torch.testing.assert_close(got, written_out(x), rtol=0, atol=1e-12)


def random_spans(rng: Random, length: int) -> list[tuple[int, int]]:
    """Queries of several requests, which all are the one sequence somewhere; some have none."""
    spans = []
    for _ in range(rng.randint(1, 4)):
        first = rng.randrange(length)
        spans.append((first, rng.choice((first, first + 1, rng.randint(first, length)))))
    return spans


@few(120)
@given(rng=dice)
def test_any_batch_is_what_the_specification_says(fast: Backend, ops: Ops, rng: Random) -> None:
    x = layer(rng, rng.choice((1, 2, rng.randint(2, 150))))
    spans, spare = random_spans(rng, len(x.q)), rng.randint(0, 40)
    got, want = (o.run(p, spans, d, spare) for o, p, d in ((x, fast.ops, torch.float32), (x, ops, torch.float64)))
    assert got.shape == want.shape
    # Scores are sums of products in float32, and weights off by as much as scores.
    off = 2.0**-20 * (1 + x.scale * x.q.double().norm(dim=-1).max() * x.key.double().norm(dim=-1).max())
    atol = float(x.value.abs().max()) * (1e-5 + 2 * off)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=float(atol))
    assert x.run(fast.ops, spans, spare=spare).dtype == x.q.dtype
    for dtype in MODEL_DTYPES:
        assert torch.equal(x.run(fast.ops, spans, dtype, spare), got.to(dtype))


@few(60)
@given(rng=dice)
def test_no_bit_depends_on_how_queries_come(fast: Backend, rng: Random) -> None:
    """All at once, in chunks, one by one, and beside others."""
    x = layer(rng, rng.randint(1, 140), dtype=torch.float32)
    length = len(x.q)
    whole = x.run(fast.ops, [(0, length)])
    for first, stop in random_spans(rng, length):
        assert torch.equal(x.run(fast.ops, [(first, stop)], spare=rng.randint(0, 70)), whole[first:stop])
    ones = [(p, p + 1) for p in range(length)]
    rng.shuffle(ones)
    assert torch.equal(x.run(fast.ops, ones), whole[[p for p, _ in ones]])


def test_threads_change_no_bit(fast: Backend) -> None:
    x = replace(layer(Random(1), 300, 8, (128, 128)), window=100)
    got = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        got.append(x.run(fast.ops, [(0, 300), (299, 300)]))
    torch.set_num_threads(1)
    assert torch.equal(*got)


@pytest.mark.parametrize("odd", [NAN, INF, -INF])
@pytest.mark.parametrize("kind", ["key", "value"])
@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_only_who_sees_a_number_that_is_not_finite_gets_none(name: str, kind: str, odd: float) -> None:
    ops = get_ops("cpu", name)
    x = replace(layer(Random(2), 90, 2, (64, 64)), window=17, cap=0.0)
    heads = x.key.shape[1]
    fine = x.run(ops, [(0, 90)])
    (x.key if kind == "key" else x.value)[x.place[40], 0, 9] = odd
    got = x.run(ops, [(0, 90)])
    bad = torch.zeros(90, 2 * heads, dtype=torch.bool)
    bad[40:58, :2] = True
    assert torch.equal(got.isnan().any(-1), bad)
    assert torch.equal(got[~bad], fine[~bad])
    assert got[bad].isnan().all()


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_numbers_out_of_range_saturate(name: str) -> None:
    ops, x = get_ops("cpu", name), replace(layer(Random(3), 50, 2, (64, 64), torch.bfloat16), window=20)
    x.value[x.place[10]], x.key[x.place[30], :, 3] = 3e38, -1e30
    got = x.run(ops, [(0, 50)])
    x.value[x.place[10]], x.key[x.place[30], :, 3] = 65504, -65504
    x = replace(x, key=x.key.float(), value=x.value.float())
    x.value[x.place[10]], x.key[x.place[30], :, 3] = 65504, -65504
    assert torch.equal(got, x.run(ops, [(0, 50)]))
    assert bool(got.isfinite().all())


def test_a_query_that_is_not_finite_gets_none_alone(fast: Backend) -> None:
    x = replace(layer(Random(4), 40, 3, (64, 64)), window=9)
    fine = x.run(fast.ops, [(0, 40)])
    x.q[20, 1, 5] = INF
    got = x.run(fast.ops, [(0, 40)])
    assert got[20, 1].isnan().all()
    got[20, 1] = fine[20, 1]
    assert torch.equal(got, fine)


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"window": 6}, "request 0 sees keys from position 9 on, and slots begin at 10"),
        ({"kv_start": [-1]}, "slots begin at -1"),
        ({"q_indptr": [0, 3]}, "q_indptr must rise from 0 to 2"),
        ({"kv_indptr": [0, 4, 7]}, "not 2, 3 and 1"),
        ({"kv_indptr": [1, 7]}, "kv_indptr must rise from 0 to 7"),
        ({"window": -1}, "from position 0 on"),
    ],
    ids=str,
)
def test_keys_that_were_not_handed_over_are_an_error(name: str, changes: dict[str, int | list[int]], says: str) -> None:
    """Two queries at positions 15 and 16 that see five keys before them."""
    key, slots = torch.zeros(20, 1, 64), torch.arange(7)
    lists = {"q_indptr": [0, 2], "kv_indptr": [0, 7], "kv_start": [10], "window": 5} | changes
    with pytest.raises(ValueError, match=says):
        get_ops("cpu", name).attend_window(torch.zeros(2, 1, 64), key, key, slots, scale=1.0, **lists)  # type: ignore[arg-type]


def test_slots_and_sizes_that_are_not_there_are_an_error(fast: Backend) -> None:
    key, one = torch.zeros(4, 1, 64), ([0, 1], [0, 1], [0], 5, 1.0)
    with pytest.raises(ValueError, match="no such slot"):
        fast.ops.attend_window(torch.zeros(1, 1, 64), key, key, torch.tensor([4]), *one)
    with pytest.raises(ValueError, match="16 to 512 channels in steps of 16, not 72"):
        fast.ops.attend_window(torch.zeros(1, 1, 72), key[..., :1].expand(4, 1, 72), key, torch.tensor([0]), *one)
    with pytest.raises(ValueError, match="at most 64"):
        fast.ops.attend_window(torch.zeros(1, 65, 64), key, key, torch.tensor([0]), *one)
