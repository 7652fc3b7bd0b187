"""The real backend over random batches against the read rule evaluated densely, and its guards."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from leankv_kernels import HIGH, LOW, MID, PRUNED, cascade
from leankv_kernels.layout import LEVEL_FAR
from leankv_sglang.attention import host_pages
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError
from tests.attention.backendutil import make_batch, make_layer, make_runner
from tests.kernels import dense

PAGE = 64
HEADS, KV_HEADS, DIM = 6, 2, 64
LENGTHS = (1, PAGE, PAGE + 1, 3 * PAGE + 7, 2 * PAGE - 1, 4 * PAGE)
TOLERANCE = {"reference": 2e-6, "cpu": 2e-3}
"""The cpu kernels round queries and softmax weights to 16 bits; values here are up to 6 large."""
CONFIGS = {
    "default": LeanKVConfig(),
    "pruned, near_pages 2": LeanKVConfig("k8v8", "k4v4", alpha_high=1.2, alpha_low=0.6, near_pages=2),
    "three tiers": LeanKVConfig("k8v4", "k4v2", alpha_high=1.3, alpha_mid=0.9, alpha_low=0.5, mid="k4v4"),
    "first pages kept": LeanKVConfig(
        "k8v4", "k4v2", alpha_high=1.6, alpha_mid=1.3, alpha_low=1.0, mid="k4v4", keep_first=2
    ),
    "first page kept, two tiers": LeanKVConfig(alpha_high=1.5, alpha_low=1.2, keep_first=1),
    "no near pages, not rotated": LeanKVConfig("k8v4", "k8v4", alpha_low=0.4, near_pages=0, rotation="none"),
}


def _sequences(
    dtype: torch.dtype, dims: tuple[int, int] = (DIM, DIM)
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)

    def draw(n: int, heads: int, dim: int = dims[0]) -> torch.Tensor:
        return (torch.randn(n, heads, dim, generator=generator) * 1.5).to(dtype)

    return [(draw(n, HEADS), draw(n, KV_HEADS), draw(n, KV_HEADS, dims[1])) for n in LENGTHS]


def _serve(runner: Any, sequences: list[Any], seed: int) -> list[torch.Tensor]:
    """Run all sequences to their ends in random batches: chunks of any length, mixed with decode, any order."""
    dims = sequences[0][0].shape[2], sequences[0][2].shape[2]
    rng, backend, layer = random.Random(seed), runner.leankv, make_layer(HEADS, KV_HEADS, *dims)
    table = runner.req_to_token_pool.req_to_token
    pages = list(range(1, runner.token_to_kv_pool.store.num_pages + 1))
    rng.shuffle(pages)
    rows = runner.req_to_token_pool.alloc_rows(len(sequences))
    for row in rows:
        for start in range(0, table.shape[1], PAGE):
            table[row, start : start + PAGE] = torch.arange(PAGE, dtype=torch.int32) + pages.pop() * PAGE
    done = [0] * len(sequences)
    outputs: list[list[torch.Tensor]] = [[] for _ in sequences]
    while unfinished := [i for i, (q, _, _) in enumerate(sequences) if done[i] < len(q)]:
        chosen = rng.sample(unfinished, rng.randint(1, len(unfinished)))
        decode = rng.random() < 0.3
        left = [len(sequences[i][0]) - done[i] for i in chosen]
        steps = [1 if decode or rng.random() < 0.2 else rng.randint(1, n) for n in left]
        starts = [done[i] for i in chosen]
        backend.init_forward_metadata(make_batch([rows[i] for i in chosen], starts, steps, decode))
        q, k, v = (
            torch.cat([sequences[i][x][a : a + n] for i, a, n in zip(chosen, starts, steps, strict=True)]).flatten(1)
            for x in range(3)
        )
        forward = backend.forward_decode if decode else backend.forward_extend
        out = forward(q, k, v, layer, SimpleNamespace()).unflatten(1, (HEADS, dims[1]))
        for i, part in zip(chosen, out.split(steps), strict=True):
            outputs[i].append(part)
        for i, n in zip(chosen, steps, strict=True):
            done[i] += n
    return [torch.cat(parts) for parts in outputs]


def _runner(dtype: torch.dtype, dims: tuple[int, int] = (DIM, DIM)) -> Any:
    return make_runner(
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=dims[0],
        v_head_dim=dims[1],
        page_size=PAGE,
        batch_size=len(LENGTHS),
        max_len=4 * PAGE,
        dtype=dtype,
    )


def _tiers(q: np.ndarray, k: np.ndarray, rule: dense.Rule, config: LeanKVConfig) -> np.ndarray:
    worth = dense.mean_attention(q, k, rule)
    tiers = np.where(worth > config.alpha_mid, MID, np.where(worth >= config.alpha_low, LOW, PRUNED))
    tiers = np.where(worth > config.alpha_high, HIGH, tiers)
    early = tiers[: config.keep_first]  # thresholds here let every head keep something
    early[(early == LOW) | (early == PRUNED)] = MID if config.mid else LOW
    tiers[:1, :, :4] = HIGH
    return tiers.astype(np.uint8)


@pytest.mark.parametrize("kernels", TOLERANCE)
@pytest.mark.parametrize("name", CONFIGS)
def test_random_batches_follow_the_read_rule(name: str, kernels: str, configure) -> None:  # type: ignore[no-untyped-def]
    config = replace(CONFIGS[name], kernels=kernels)
    configure(config)
    sequences = _sequences(torch.float32)
    outputs = _serve(_runner(torch.float32), sequences, seed=1)
    rule = dense.Rule(PAGE, config.near_pages, *config.formats, config.rotation, DIM**-0.5, config.mid_format)
    for (q, k, v), out in zip(sequences, outputs, strict=True):
        wide = [x.double().numpy() for x in (q, k, v)]
        expected = dense.attention(*wide, _tiers(wide[0], wide[1], rule, config), rule)
        np.testing.assert_allclose(out.numpy(), expected, atol=TOLERANCE[kernels], rtol=1e-5)


@pytest.mark.parametrize(
    ("kernels", "dims", "dtype", "atol"),
    [
        *((kernels, dims, torch.float32, atol) for kernels, atol in TOLERANCE.items() for dims in ((64, 32), (48, 80))),
        ("cuda-emulated", (192, 128), torch.bfloat16, 3e-2),
    ],
    ids=str,
)
def test_values_of_another_width_follow_the_read_rule(
    kernels: str, dims: tuple[int, int], dtype: torch.dtype, atol: float, configure: Callable[[LeanKVConfig], None]
) -> None:
    """Committed in prefill and in decode, read near and far, trimmed; every block is accounted for."""
    if kernels == "cuda-emulated" and shutil.which("g++") is None:
        pytest.skip("the emulator is compiled by g++")
    config = replace(CONFIGS["three tiers"], kernels=kernels)
    configure(config)
    sequences, runner = _sequences(dtype, dims), _runner(dtype, dims)
    pool = runner.token_to_kv_pool
    assert (pool.layout.head_dim, pool.layout.v_head_dim) == dims
    assert (pool.open_pages.key.shape[4], pool.open_pages.value.shape[4]) == dims
    outputs = _serve(runner, sequences, seed=1)
    rule = dense.Rule(PAGE, config.near_pages, *config.formats, config.rotation, dims[0] ** -0.5, config.mid_format)
    for (q, k, v), out in zip(sequences, outputs, strict=True):
        wide = [x.double().numpy() for x in (q, k, v)]
        expected = dense.attention(*wide, _tiers(wide[0], wide[1], rule, config), rule)
        np.testing.assert_allclose(out.double().numpy(), expected, atol=atol, rtol=1e-5)
    assert pool.audit() == []
    held = np.flatnonzero((pool.store.page_table[0] != 0).numpy())
    assert len(held) == sum(n // PAGE for n in LENGTHS)
    pool.deferred.cut(held, LEVEL_FAR)
    assert pool.store.usage().near > 0
    pool.deferred.run()
    assert pool.store.usage().near == 0
    assert pool.store.audit() == []


@pytest.mark.parametrize("name", CONFIGS)
def test_any_schedule_gives_the_same_bits(name: str, configure) -> None:  # type: ignore[no-untyped-def]
    configure(CONFIGS[name])
    sequences = _sequences(torch.bfloat16)
    first, second = (_serve(_runner(torch.bfloat16), sequences, seed) for seed in (2, 3))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kernels", ["reference", "cpu", "cuda-emulated"])
def test_pages_in_place_give_the_bits_of_copies(kernels: str, configure) -> None:  # type: ignore[no-untyped-def]
    if kernels == "cuda-emulated" and shutil.which("g++") is None:
        pytest.skip("the emulator is compiled by g++")
    configure(replace(CONFIGS["three tiers"], kernels=kernels))
    sequences, outputs, pools = _sequences(torch.bfloat16), [], []
    for enough in (True, False):
        runner = _runner(torch.bfloat16)
        pool = runner.token_to_kv_pool
        assert pool.open_pages.spare > 4
        pool.store.blocks.zero_()
        if not enough:
            pool.open_pages.spare = 1
        outputs.append(_serve(runner, sequences, seed=8))
        pools.append(pool)
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(*(pool.store.blocks[:-1] for pool in pools))
    assert torch.equal(*(pool.store.page_table for pool in pools))


def test_pool_accounts_for_every_block(configure) -> None:  # type: ignore[no-untyped-def]
    configure(LeanKVConfig(alpha_low=0.5))
    runner = _runner(torch.bfloat16)
    _serve(runner, _sequences(torch.bfloat16), seed=4)
    pool = runner.token_to_kv_pool
    full = sum(n // PAGE for n in LENGTHS)
    assert pool.counts.committed == full
    assert pool.store.usage().records == full
    assert pool.audit() == []
    held = (pool.store.page_table[0] != 0).nonzero()[:, 0]
    pool.deferred.free(held.numpy())
    assert pool.audit() == []
    assert pool.store.usage().blocks == 0


def test_decode_reads_shared_pages_once(configure, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """What the tree gives requests of one prefix is a group in every decode step, alone and in mixed batches."""
    configure(LeanKVConfig())
    for name, least in (("LEAST_TOKENS", 3 * PAGE), ("LEAST_SAVED", 6 * PAGE)):
        monkeypatch.setattr(cascade, name, least)
    runner = _runner(torch.bfloat16)
    rows = runner.req_to_token_pool.alloc_rows(len(LENGTHS))
    table, slots = runner.req_to_token_pool.req_to_token, torch.arange(3 * PAGE, dtype=torch.int32) + PAGE
    for row in rows:
        table[row, : 3 * PAGE] = slots
    for steps in ([1] * len(rows), [*[1] * (len(rows) - 1), 2]):
        prefix = [3 * PAGE] * len(rows)
        runner.leankv.init_forward_metadata(make_batch(rows, prefix, steps, decode=max(steps) == 1))
        plan, alike = runner.leankv.forward_metadata, steps.count(1)
        assert plan.groups.tolist() == [[0, alike, 0, 3, 0]]
        assert plan.members.tolist() == [*range(alike)]


def test_a_row_that_does_not_hold_the_open_page_is_refused(configure) -> None:  # type: ignore[no-untyped-def]
    configure(LeanKVConfig())
    runner = _runner(torch.bfloat16)
    (row,) = runner.req_to_token_pool.alloc_rows(1)
    with pytest.raises(LeanKVError, match="continues inside a page"):
        runner.leankv.init_forward_metadata(make_batch([row], [PAGE + 3], [1], decode=True))


def test_a_page_that_was_trimmed_is_not_read_near(configure) -> None:  # type: ignore[no-untyped-def]
    """By ids of the host: told of, or read from the table where nobody was."""
    configure(LeanKVConfig())
    runner = _runner(torch.bfloat16)
    pool, table = runner.token_to_kv_pool, runner.req_to_token_pool.req_to_token
    row, other = runner.req_to_token_pool.alloc_rows(2)
    for at, pages in ((row, [5, 7]), (other, [7, 5])):
        slots = torch.tensor(pages, dtype=torch.int32)[:, None] * PAGE + torch.arange(PAGE, dtype=torch.int32)
        table[at, : 2 * PAGE] = slots.flatten()
    runner.leankv.page_rows.put(row, 0, np.array([5, 7]))
    pool.ledger.cut(np.array([5]), LEVEL_FAR)
    pool.counts.trimmed = 1
    runner.leankv.init_forward_metadata(make_batch([row], [2 * PAGE], [1], decode=True))
    assert pool.slot_reader.reads == 0
    for refused in (make_batch([other], [2 * PAGE], [1], True), make_batch([row], [PAGE], [PAGE], False)):
        with pytest.raises(LeanKVError, match="whose near part was trimmed"):
            runner.leankv.init_forward_metadata(refused)
    assert pool.slot_reader.reads > 0


def test_rows_that_sglang_does_not_leave_on_the_host_are_read_back(configure) -> None:  # type: ignore[no-untyped-def]
    configure(LeanKVConfig())
    runner = _runner(torch.bfloat16)
    (row,) = runner.req_to_token_pool.alloc_rows(1)
    batch = make_batch([row], [0], [3], decode=False)
    batch.req_pool_indices_cpu = None
    runner.leankv.init_forward_metadata(batch)
    assert runner.token_to_kv_pool.slot_reader.reads == 1
    with pytest.raises(LeanKVError, match="continues inside a page"):
        runner.leankv.init_forward_metadata(make_batch([row], [5], [1], decode=True))


def test_the_host_knows_what_the_plan_reads(configure) -> None:  # type: ignore[no-untyped-def]
    """Of mixed batches: the pages read, those filled, and those read near are the device's own."""
    configure(LeanKVConfig(near_pages=2))
    runner = _runner(torch.bfloat16)
    rows = runner.req_to_token_pool.alloc_rows(4)
    table, mirrored = runner.req_to_token_pool.req_to_token, runner.leankv.page_rows
    for row in rows:
        pages = np.random.default_rng(row).permutation(np.arange(1, 20))[:4]
        table[row] = torch.from_numpy((pages[:, None] * PAGE + np.arange(PAGE)).flatten()).int()
        mirrored.put(row, 0, pages)
    rng = random.Random(3)
    for _ in range(50):
        prefix = [rng.randrange(3) * PAGE for _ in rows]
        extend = [rng.choice([0, 1, PAGE - 1, PAGE, rng.randint(1, PAGE)]) for _ in rows]
        runner.leankv.init_forward_metadata(make_batch(rows, prefix, extend, decode=False))
        plan, indices = runner.leankv.forward_metadata, np.array(rows)
        read = host_pages.pages_read(mirrored, indices, prefix, extend)
        assert read.tolist() == plan.pages.tolist()
        assert runner.leankv.filled.tolist() == plan.own_pages[plan.full].tolist()
        near = host_pages.pages_near(read, plan.page_index, plan.page_indptr, plan.request, plan.near_pages)
        wanted = [
            int(plan.pages[start + own - back])
            for _, _, _, own, start in plan.tiles.tolist()
            for back in range(1, min(own, plan.near_pages) + 1)
        ]
        assert sorted(near.tolist()) == sorted(wanted)
    assert runner.token_to_kv_pool.slot_reader.reads == 0


def test_raw_buffers_are_refused(configure) -> None:  # type: ignore[no-untyped-def]
    configure(LeanKVConfig())
    pool = _runner(torch.bfloat16).token_to_kv_pool
    for ask in (pool.get_key_buffer, pool.get_value_buffer, pool.get_kv_buffer, pool.set_kv_buffer):
        with pytest.raises(LeanKVError, match="no raw tokens"):
            ask(0)
