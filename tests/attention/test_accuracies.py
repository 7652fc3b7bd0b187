"""Requests of different accuracy side by side: each gets the bits it gets alone, and rows belong to one at a time."""

from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from leankv_kernels import HIGH, LOW, PRUNED
from leankv_kernels.reference.record import read_header
from leankv_sglang.compression.request_params import Accuracy, resolve, salted
from leankv_sglang.config import LeanKVConfig
from tests.attention.backendutil import make_batch, make_layer, make_runner

PAGE, HEADS, KV_HEADS, DIM = 64, 6, 2, 64
LENGTH = 3 * PAGE + 9
CONFIG = LeanKVConfig(alpha_high=1.2)
FIELDS: list[Any] = [
    {"profile": "near-lossless"},
    None,
    {"profile": "small"},
    {"alpha_high": 1.5, "alpha_low": 0.6},
    {"alpha_low": 0.9},
    {"profile": "balanced"},
]
KERNELS = ("reference", "cpu")


def _accuracies(config: LeanKVConfig) -> list[Accuracy]:
    return [resolve(field, config) for field in FIELDS]


def _sequence() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((LENGTH, HEADS, DIM), (LENGTH, KV_HEADS, DIM), (LENGTH, KV_HEADS, DIM))
    return [(torch.randn(shape, generator=generator) * 1.5).bfloat16() for shape in shapes]


def _runner(rows: int) -> Any:
    return make_runner(
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=DIM,
        page_size=PAGE,
        batch_size=rows,
        max_len=4 * PAGE,
        dtype=torch.bfloat16,
    )


class Requests:
    """Requests for one and the same sequence, as SGLang admits and runs them."""

    def __init__(self, runner: Any, accuracies: list[Accuracy]) -> None:
        self.runner, self.sequence, self.layer = runner, _sequence(), make_layer(HEADS, KV_HEADS, DIM)
        pool = runner.req_to_token_pool
        kvs = [SimpleNamespace(holds_kv=False, req_pool_idx=None, kv_allocated_len=1) for _ in accuracies]
        self.reqs = [SimpleNamespace(kv=kv, cache_salt=salted(a, None)) for kv, a in zip(kvs, accuracies, strict=True)]
        self.rows = pool.alloc(self.reqs)
        runner.leankv.row_thresholds.assign(self.reqs)
        free = iter(range(1, runner.token_to_kv_pool.store.num_pages + 1))
        self.pages = [[next(free) for _ in range(0, LENGTH, PAGE)] for _ in self.rows]
        for row, pages in zip(self.rows, self.pages, strict=True):
            for i, page in enumerate(pages):
                pool.req_to_token[row, i * PAGE : (i + 1) * PAGE] = torch.arange(PAGE, dtype=torch.int32) + page * PAGE

    def run(self, seed: int = 0) -> list[torch.Tensor]:
        """Outputs of every request, in random batches of chunks and decode."""
        rng, backend, done = random.Random(seed), self.runner.leankv, [0] * len(self.rows)
        outputs: list[list[torch.Tensor]] = [[] for _ in self.rows]
        while unfinished := [i for i, n in enumerate(done) if n < LENGTH]:
            chosen = rng.sample(unfinished, rng.randint(1, len(unfinished)))
            decode = rng.random() < 0.3
            starts = [done[i] for i in chosen]
            steps = [1 if decode else rng.randint(1, LENGTH - start) for start in starts]
            backend.init_forward_metadata(make_batch([self.rows[i] for i in chosen], starts, steps, decode))
            spans = list(zip(starts, steps, strict=True))
            q, k, v = (torch.cat([x[a : a + n] for a, n in spans]).flatten(1) for x in self.sequence)
            forward = backend.forward_decode if decode else backend.forward_extend
            out = forward(q, k, v, self.layer, SimpleNamespace())
            for i, part, n in zip(chosen, out.split(steps), steps, strict=True):
                outputs[i].append(part)
                done[i] += n
        return [torch.cat(parts) for parts in outputs]

    def records(self, request: int) -> torch.Tensor:
        """The records of a request's full pages, without what names page and blocks."""
        store = self.runner.token_to_kv_pool.store
        full = torch.tensor(self.pages[request][: LENGTH // PAGE])
        records = store.gather(0, full).clone()
        lay = store.layout
        words = records.view(torch.int32)
        words[:, 0] = 0
        words[:, lay.list_word : lay.list_word + lay.max_blocks] = 0
        return records

    def release(self) -> None:
        """Give rows and pages back."""
        pool = self.runner.token_to_kv_pool
        pool.deferred.free(np.array([page for pages in self.pages for page in pages]))
        pool.drain()
        self.runner.req_to_token_pool.free_rows(self.rows)


@pytest.mark.parametrize("kernels", KERNELS)
def test_side_by_side_gives_the_bits_of_alone(kernels: str, configure) -> None:  # type: ignore[no-untyped-def]
    config = replace(CONFIG, kernels=kernels)
    configure(config)
    accuracies = _accuracies(config)
    together = Requests(_runner(len(accuracies)), accuracies)
    outputs = together.run(seed=1)
    for i, accuracy in enumerate(accuracies):
        alone = Requests(_runner(1), [accuracy])
        assert torch.equal(outputs[i], alone.run(seed=2 + i)[0])
        assert torch.equal(together.records(i), alone.records(0))
    # The server's own by any name, and nothing else, is the same.
    assert torch.equal(outputs[1], outputs[5])
    assert len({out.float().numpy().tobytes() for out in outputs}) == 5


def test_the_servers_own_is_what_a_server_with_those_flags_gives(configure) -> None:  # type: ignore[no-untyped-def]
    configure(CONFIG)
    asked = Requests(_runner(1), [resolve({"alpha_high": 1.5, "alpha_low": 0.6}, CONFIG)])
    out = asked.run()[0]
    configure(replace(CONFIG, alpha_high=1.5, alpha_low=0.6))
    flags = Requests(_runner(1), [resolve(None, CONFIG)])
    assert torch.equal(flags.run()[0], out)
    assert torch.equal(flags.records(0), asked.records(0))


@pytest.mark.parametrize("significance", ["attention", "none"])
def test_lossless_is_all_high_and_small_all_low(significance: str, configure) -> None:  # type: ignore[no-untyped-def]
    config = replace(CONFIG, significance=significance)
    configure(config)
    requests = Requests(_runner(2), [resolve({"profile": name}, config) for name in ("near-lossless", "small")])
    requests.run()
    layout = requests.runner.token_to_kv_pool.layout
    high, low = (read_header(requests.records(i), layout) for i in range(2))
    assert (high.counts.high == PAGE).all()
    # Four sinks at the start stay high.
    assert low.counts.high.sum(0).tolist() == [4] * KV_HEADS
    assert (low.counts.low.sum(0) == LENGTH // PAGE * PAGE - 4).all()
    assert {HIGH, LOW, PRUNED} == {0, 1, 2}


def test_a_row_belongs_to_one_request_at_a_time(configure) -> None:  # type: ignore[no-untyped-def]
    """Rows go from hand to hand, also to requests again that were retracted, and to takers nobody introduces."""
    configure(CONFIG)
    runner = _runner(2)
    accuracies = _accuracies(CONFIG)
    alone = {a.spec: Requests(_runner(1), [a]).run()[0] for a in accuracies}
    rng = random.Random(5)
    for turn in range(12):
        pair = [rng.choice(accuracies) for _ in range(2)]
        requests = Requests(runner, pair)
        for out, accuracy in zip(requests.run(seed=turn), pair, strict=True):
            assert torch.equal(out, alone[accuracy.spec])
        requests.release()
        assert runner.token_to_kv_pool.audit() == []
    # A chunked request's row is named again at every chunk.
    requests = Requests(runner, [accuracies[0], accuracies[3]])
    runner.leankv.row_thresholds.assign(requests.reqs)
    assert torch.equal(requests.run()[1], alone[accuracies[3].spec])
    requests.release()
    rows = runner.req_to_token_pool.alloc_rows(2)
    assert sorted(rows) == sorted(requests.rows)
    runner.leankv.init_forward_metadata(make_batch(rows, [0, 0], [PAGE, PAGE], decode=False))
    assert runner.leankv.thresholds is None, "nothing is left of what they had"


def test_nothing_is_gathered_where_all_have_the_servers_own(configure) -> None:  # type: ignore[no-untyped-def]
    configure(CONFIG)
    runner = _runner(2)
    requests = Requests(runner, [resolve(None, CONFIG)] * 2)
    runner.leankv.init_forward_metadata(make_batch(requests.rows, [0, 0], [PAGE, PAGE], decode=False))
    assert runner.leankv.thresholds is None


def test_bytes_of_pages_are_what_the_store_counts(configure) -> None:  # type: ignore[no-untyped-def]
    configure(CONFIG)
    requests = Requests(_runner(3), _accuracies(CONFIG)[:3])
    requests.run()
    pool = requests.runner.token_to_kv_pool
    full = [np.array(pages[: LENGTH // PAGE]) for pages in requests.pages]
    each = [pool.bytes_of_pages(pages) for pages in full]
    usage = pool.store.usage()
    assert sum(each) == pool.bytes_of_pages(np.concatenate(full))
    assert sum(each) == usage.blocks * pool.layout.block_bytes + 4 * usage.records
    # Open pages hold no records.
    assert pool.bytes_of_pages(np.array([requests.pages[0][-1]])) == 0
    assert pool.open_pages.row_nbytes() * pool.open_pages.rows == pool.open_pages.nbytes()
