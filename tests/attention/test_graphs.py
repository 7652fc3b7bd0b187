"""Decode graphs through the hooks that SGLang's runner calls, by a double that replays what it has captured."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import build_replay_fb_view
from torch import Tensor

from leankv_patches import replay_rows
from leankv_sglang.config import LeanKVConfig
from tests.attention.backendutil import make_batch, make_layer, make_runner

PAGE, HEADS, KV_HEADS, DIM, ROWS, MOST_PAGES = 64, 6, 2, 64, 6, 5
BUCKETS = (1, 2, 4, 8)
NOTHING: Any = SimpleNamespace()


class GraphRunner:
    """What ``DecodeCudaGraphRunner`` of sglang 0.5.23 does with a backend. A graph is what the layer read when it was
    captured: the plan's tensors and these inputs, at addresses that stay."""

    def __init__(self, backend: Any, layer: Any) -> None:
        self.backend, self.layer = backend, layer
        backend.init_cuda_graph_state(max(BUCKETS), max(BUCKETS))
        fill = backend.get_cuda_graph_seq_len_fill_value()
        self.fill = fill
        self.buffers: Any = SimpleNamespace(
            input_ids=torch.zeros(max(BUCKETS), dtype=torch.int64),
            positions=torch.zeros(max(BUCKETS), dtype=torch.int64),
            req_pool_indices=torch.zeros(max(BUCKETS), dtype=torch.int64),
            seq_lens=torch.full((max(BUCKETS),), fill),
            seq_lens_cpu=torch.full((max(BUCKETS),), fill),
            mamba_track_indices=None,
        )
        sizes = (HEADS, KV_HEADS, KV_HEADS)
        self.inputs = [torch.zeros(max(BUCKETS), n * DIM, dtype=torch.bfloat16) for n in sizes]
        self.plans: dict[int, Any] = {}
        for size in reversed(BUCKETS):
            batch = SimpleNamespace(
                batch_size=size,
                forward_mode=ForwardMode.DECODE,
                req_pool_indices=self.buffers.req_pool_indices[:size],
                seq_lens_cpu=self.buffers.seq_lens_cpu[:size],
            )
            backend.init_forward_metadata_out_graph(batch, in_capture=True)
            for _ in range(3):
                backend.init_forward_metadata_in_graph(batch)
                self._layer(size)
            self.plans[size] = backend.forward_metadata

    def _layer(self, size: int) -> Tensor:
        q, k, v = (x[:size] for x in self.inputs)
        return self.backend.forward_decode(q, k, v, self.layer, NOTHING)

    def replay(self, batch: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A step of the smallest graph that takes the batch."""
        count = len(batch.seq_lens_cpu)
        size = next(n for n in BUCKETS if n >= count)
        self.buffers.seq_lens_cpu.fill_(self.fill)[:count] = batch.seq_lens_cpu
        self.buffers.req_pool_indices.fill_(0)[:count] = batch.req_pool_indices
        for static, given in zip(self.inputs, (q, k, v), strict=True):
            static.zero_()[:count] = given
        view = build_replay_fb_view(
            forward_batch=batch,
            buffers=self.buffers,
            bs=size,
            raw_bs=count,
            num_tokens=size,
            global_num_tokens_cpu=None,
            seq_len_fill_value=self.fill,
            capture_forward_mode=ForwardMode.DECODE,
            is_encoder_decoder=False,
        )
        self.backend.init_forward_metadata_out_graph(view)
        self.backend.forward_metadata = self.plans[size]
        return self._layer(size)[:count]


@dataclass(eq=False)
class Request:
    """Its row, its pages, and how many of its tokens a forward has seen."""

    tokens: list[Tensor]
    row: int
    pages: list[int] = field(default_factory=list)
    done: int = 0


class Life:
    """Requests that come, go on in prompts and decode steps, are retracted and end; decode by graphs or not."""

    def __init__(self, graphs: bool, seed: int) -> None:
        self.rng = random.Random(seed)
        self.runner = make_runner(
            heads=HEADS,
            kv_heads=KV_HEADS,
            head_dim=DIM,
            page_size=PAGE,
            batch_size=ROWS,
            max_len=MOST_PAGES * PAGE,
            dtype=torch.bfloat16,
        )
        self.backend, self.layer = self.runner.leankv, make_layer(HEADS, KV_HEADS, DIM)
        self.graphs = GraphRunner(self.backend, self.layer) if graphs else None
        self.pool = self.runner.token_to_kv_pool
        self.free = list(range(1, ROWS * MOST_PAGES + 1))
        self.rows = self.runner.req_to_token_pool.alloc_rows(ROWS)
        self.running: list[Request] = []
        self.outputs: list[Tensor] = []

    def admit(self) -> None:
        rng, length = self.rng, self.rng.randint(1, MOST_PAGES * PAGE)
        generator = torch.Generator().manual_seed(rng.getrandbits(32))
        tokens = [torch.randn(length, n * DIM, generator=generator).bfloat16() for n in (HEADS, KV_HEADS, KV_HEADS)]
        row = self.rows.pop(rng.randrange(len(self.rows)))
        self.backend._reset_rows([row])
        if rng.random() < 0.4:
            accuracy = SimpleNamespace(is_own=False, alphas=(2.0, 1.5, 1.0))
            self.backend.row_thresholds.set(row, accuracy)
        self.running.append(Request(tokens, row))

    def leave(self, request: Request) -> None:
        """Its end, or its retraction: row and pages are free at once, for whoever comes before the next forward."""
        self.running.remove(request)
        self.rows.append(request.row)
        self.pool.deferred.free(torch.tensor(request.pages).numpy())
        self.free += request.pages

    def chunk(self, left: int, done: int) -> int:
        """Prompts often end just before a page does, so that decode steps fill it."""
        return self.rng.choice((left, self.rng.randint(1, left), max(1, min(left, PAGE - 2 - done % PAGE))))

    def step(self) -> None:
        rng = self.rng
        while self.rows and rng.random() < 0.5:
            self.admit()
        if not self.running:
            return
        chosen = rng.sample(self.running, rng.randint(1, len(self.running)))
        decode = rng.random() < 0.85
        left = [len(r.tokens[0]) - r.done for r in chosen]
        extend = [1 if decode else self.chunk(n, r.done) for n, r in zip(left, chosen, strict=True)]
        table = self.runner.req_to_token_pool.req_to_token
        for request, n in zip(chosen, extend, strict=True):
            while len(request.pages) * PAGE < request.done + n:
                page = self.free.pop(rng.randrange(len(self.free)))
                at = len(request.pages)
                table[request.row, at * PAGE : (at + 1) * PAGE] = torch.arange(PAGE, dtype=torch.int32) + page * PAGE
                self.backend.page_rows.put(request.row, at, torch.tensor([page]).numpy())
                request.pages.append(page)
        batch = make_batch([r.row for r in chosen], [r.done for r in chosen], extend, decode)
        batch.__dict__.update(seq_lens_sum=None, max_seq_len_host=None, out_cache_loc_virtual=None, kv_loc_plan=None)
        batch.__dict__.update(kv_loc_cols=None, max_seq_len_override=None, spec_info=None, lora_ids=None)
        batch.__dict__.update(can_run_decode_cuda_graph=True)
        q, k, v = (
            torch.cat([r.tokens[i][r.done : r.done + n] for r, n in zip(chosen, extend, strict=True)]) for i in range(3)
        )
        if decode and self.graphs is not None:
            out = self.graphs.replay(batch, q, k, v)
        else:
            self.backend.init_forward_metadata(batch)
            forward = self.backend.forward_decode if decode else self.backend.forward_extend
            out = forward(q, k, v, self.layer, NOTHING)
        self.outputs.append(out.clone())
        for request, n in zip(chosen, extend, strict=True):
            request.done += n
            if request.done == len(request.tokens[0]) or rng.random() < 0.02:
                self.leave(request)


@pytest.fixture
def replay_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """The view as the patch has it."""
    hooks: list[Any] = []
    monkeypatch.setattr(replay_rows.hook, "register", lambda _target, hook, _kind: hooks.append(hook))
    replay_rows.install()
    original = build_replay_fb_view

    def patched(**kwargs: Any) -> Any:
        return hooks[0](original(**kwargs), **kwargs)

    monkeypatch.setattr(f"{__name__}.build_replay_fb_view", patched)


def test_replays_have_the_bits_of_eager_steps(configure: Any, replay_view: None) -> None:
    """Over other lengths, requests and padding, rows that fill pages, retraction between replays."""
    configure(LeanKVConfig(alpha_high=1.2, alpha_low=0.6))
    for seed in range(2):
        lives = Life(True, seed), Life(False, seed)
        reads = [life.pool.slot_reader.reads for life in lives]
        for _ in range(120):
            for life in lives:
                life.step()
        for replayed, eager in zip(lives[0].outputs, lives[1].outputs, strict=True):
            assert torch.equal(replayed, eager)
        assert [life.pool.slot_reader.reads for life in lives] == reads, "a step asked the device for ids"
        for life in lives:
            assert life.pool.counts.committed > 0
            life.pool.drain()
            assert life.pool.store.audit() == []
        assert lives[0].pool.counts.committed == lives[1].pool.counts.committed
        assert lives[0].pool.usage() == lives[1].pool.usage()


def test_capture_and_warm_up_leave_no_record(configure: Any) -> None:
    """Batches made up for them have row 0 and page 0, and may fill pages."""
    configure(LeanKVConfig())
    life = Life(True, 0)
    life.backend.init_forward_metadata(make_batch([0, 0], [0, 0], [2 * PAGE, PAGE], decode=False))
    sizes = (HEADS, KV_HEADS, KV_HEADS)
    q, k, v = (torch.randn(3 * PAGE, n * DIM).bfloat16() for n in sizes)
    life.backend.forward_extend(q, k, v, life.layer, NOTHING)
    life.backend.init_forward_metadata(make_batch([0], [PAGE - 1], [1], decode=True))
    life.backend.forward_decode(q[:1], k[:1], v[:1], life.layer, NOTHING)
    life.pool.drain()
    assert life.pool.usage().records == 0
    assert life.pool.store.audit() == []
