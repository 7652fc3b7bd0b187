"""Bytes by layer and KV head: what the headers' own offsets say, and nothing is left over or counted twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leankv_kernels import HIGH, PRUNED, RecordLayout, RecordStore, get_ops
from leankv_kernels import layout as L
from leankv_kernels.reference.record import read_header
from tests.kernels.draws import commit, generator, small_layout

LAYERS, PAGES, HEADS, PAGE = 3, 4, 2, 32
LEVELS = (L.LEVEL_BASE, L.LEVEL_FAR, L.LEVEL_NEAR)


def by_offsets(record: Tensor, layout: RecordLayout, level: int) -> list[int]:
    """Bytes of each head of one record: from where its sections begin to where the next head's do."""
    words = record.view(torch.int32)[layout.head_word :].tolist()
    starts = [[words[L.HEAD_WORDS * h + 1 + section] for h in range(HEADS)] for section in range(3)]
    end = int(record.view(torch.int32)[L.W_BYTES])
    ends = [starts[1][0], starts[2][0], end]
    total = [2 * layout.head_dim] * HEADS
    for begin, stop in list(zip(starts, ends, strict=True))[:level]:
        for h, (a, b) in enumerate(zip(begin, [*begin[1:], stop], strict=True)):
            total[h] += b - a
    return total


@pytest.mark.parametrize("tiers", ["k8v4,k4v2", "k8v8,k8v4,k4v4", "k4v2,k4v2"])
@pytest.mark.parametrize("near", [True, False])
def test_heads_headers_and_padding_make_up_the_usage(tiers: str, near: bool) -> None:
    layout = small_layout(tiers, near=near, page_size=PAGE)
    store = RecordStore(layout, LAYERS, PAGES + 2, "cpu")
    assert not store.usage_by_head().any()
    expected = torch.zeros(LAYERS, HEADS, dtype=torch.int64)
    levels = torch.tensor([LEVELS[i % 3] for i in range(PAGES)])
    pages = torch.arange(1, PAGES + 1)
    codes = 4 if layout.mid else 3
    for layer in range(LAYERS):
        drawn = torch.randint(0, codes, (PAGES, HEADS, PAGE), generator=generator(layer), dtype=torch.uint8)
        drawn[0, 0], drawn[1, 0] = PRUNED, HIGH
        page = commit(layout, drawn, layer)
        for record, level in zip(page.records, levels.tolist(), strict=True):
            expected[layer] += torch.tensor(by_offsets(record, layout, level))
        store.write(layer, pages, page.records, page.nbytes)
    store.cut(pages, levels)
    found = store.usage_by_head()
    assert found.tolist() == expected.tolist()
    # A page that is not there counts nothing.
    for some in (pages, pages[1:3], torch.tensor([PAGES + 1]), pages[:0]):
        by_head = store.count_heads(some)
        assert get_ops("cpu").count_heads(store, some).tolist() == by_head.tolist()
    by_head = store.count_heads(pages)
    assert by_head[..., 0].tolist() == expected.tolist()
    counted = store.usage()
    tiers = [counted.high_tokens, counted.mid_tokens, counted.low_tokens, counted.pruned_tokens]
    assert by_head[..., 1:].sum((0, 1)).tolist() == tiers

    usage = store.usage()
    heads = store.page_table[store.page_table > 0].long()
    header = read_header(store.blocks[heads, : 4 * (layout.head_word + L.HEAD_WORDS * HEADS)], layout)
    tail = usage.blocks * layout.block_bytes - int(header.nbytes.sum())
    nobodys = usage.records * (layout.header_bytes - HEADS * layout.centre_bytes) + tail
    assert int(found.sum()) + nobodys == sum(usage[:6])
    assert store.audit() == []

    store.free(pages[1:])
    left = store.usage_by_head()
    assert (left > 0).all()
    assert (left < found).all()
