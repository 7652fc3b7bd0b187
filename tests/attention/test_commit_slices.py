"""A commit that would take much memory is cut into slices: the same records in the same blocks, in bounded memory."""

from __future__ import annotations

import shutil

import pytest
import torch

from leankv_kernels import RawPages, RecordStore, get_ops
from leankv_sglang.attention.read_rule import Compressor
from leankv_sglang.compression import commit_memory
from leankv_sglang.compression.build import make_layout
from leankv_sglang.compression.commit_memory import commit_bytes, pages_at_once, slices
from leankv_sglang.compression.significance import Attention
from leankv_sglang.config import LeanKVConfig
from tests.peak import peak_bytes

LAYERS, PAGES, PAGE, HEADS, DIM = 3, 5, 64, 2, 64
LAYOUT = make_layout(LeanKVConfig(), PAGE, HEADS, DIM)
COUNTER = 8
"""Bytes that a commit leaves behind at its first, whatever its size."""


@pytest.mark.parametrize("at_once", [1, 2, 4, 5, 7, 10, 14, 15, 100])
def test_slices_are_all_pages_in_order(at_once: int) -> None:
    cut = [[(x, y) for x in range(LAYERS)[a] for y in range(PAGES)[b]] for a, b in slices(LAYERS, PAGES, at_once)]
    assert [one for part in cut for one in part] == [(x, y) for x in range(LAYERS) for y in range(PAGES)]
    assert max(map(len, cut)) <= at_once


@pytest.mark.parametrize("kernels", ["reference", "cpu", "cuda-emulated"])
@pytest.mark.parametrize("own", [False, True], ids=["the server's thresholds", "their own"])
def test_slices_commit_the_same_blocks(kernels: str, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels == "cuda-emulated" and shutil.which("g++") is None:
        pytest.skip("the emulator is compiled by g++")
    ops, g = get_ops("cpu", kernels), torch.Generator().manual_seed(5)
    one = ops.commit_bytes(LAYOUT, 2 * HEADS, 2)
    key, value = (torch.randn(LAYERS, 9, PAGE, HEADS, DIM, generator=g).to(torch.bfloat16) for _ in "kv")
    scores = torch.randint(0, 1 << 24, (LAYERS, 9, 2 * HEADS, PAGE), generator=g, dtype=torch.int32)
    raw = RawPages(key, value, scores, torch.tensor([7, 1, 3, 0, 8]))
    alphas = torch.rand(LAYERS, PAGES, 3, HEADS, generator=g, dtype=torch.float64).sort(dim=2, descending=True)[0]
    stores = []
    for limit in (commit_memory.COMMIT_BYTES, one - 1, 2 * one, 7 * one, 10 * one):
        monkeypatch.setattr(commit_memory, "COMMIT_BYTES", limit)
        store = RecordStore(LAYOUT, LAYERS, 8, "cpu", LAYERS * PAGES * LAYOUT.max_blocks)
        store.blocks.zero_()
        compressor = Compressor(ops, store, "hadamard", Attention(), alphas[:, 0].contiguous(), 1)
        given = alphas if own else None

        def commit(compressor: Compressor = compressor, given: torch.Tensor | None = given) -> None:
            compressor.commit(0, torch.tensor([4, 2, 8, 1, 5]), raw, torch.tensor([0, 1, 0, 7, 2]), given)

        taken = peak_bytes(commit)
        assert taken <= commit_bytes(ops, LAYOUT, 2 * HEADS, 2, LAYERS * PAGES) + COUNTER
        assert taken <= max(limit, one) + COUNTER
        assert pages_at_once(ops, LAYOUT, 2 * HEADS, 2) * one <= max(limit, one)
        stores.append(store)
    assert stores[0].usage().records == LAYERS * PAGES
    for store in stores[1:]:
        assert torch.equal(store.blocks[:-1], stores[0].blocks[:-1])  # the last is what need not be written
        assert torch.equal(store.page_table, stores[0].page_table)
        assert store.usage() == stores[0].usage()
        assert store.audit() == []
