"""The byte layout of records: what is where, what a cut leaves, and what every view reads."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given
from torch import Tensor

from leankv_kernels import HIGH, LOW, PRUNED, TIERS, RecordLayout, Tier, TierCounts
from leankv_kernels import layout as L
from leankv_kernels.layout import key_planes, value_planes
from leankv_kernels.reference.record import View, cut, decode, encode, read_header, read_tiers
from tests.kernels import dense
from tests.kernels.draws import (
    HEAD_DIMS,
    PAIRS,
    TIER_MAPS,
    Committed,
    commit,
    formats,
    generator,
    pair_name,
    random_layout,
    small_layout,
)
from tests.kernels.kernelutil import dice, every_sample, few

every_pair = pytest.mark.parametrize("pair", PAIRS, ids=pair_name)


def check_reading(x: Tensor, read: Tensor, bits: int, fewest: int, where: Tensor) -> None:
    """A code of ``bits`` bits read at its bin's centre is off by half a bin at most, of two bits a little more."""
    bound = torch.from_numpy(dense.widest_error(x.numpy(), bits, fewest))
    assert bool(((read - x).abs() <= bound[..., None])[where].all())


def assert_same_view(a: View, b: View) -> None:
    """Bit for bit, wherever something is read."""
    assert torch.equal(a.valid, b.valid)
    assert torch.equal(a.key_centre, b.key_centre)
    for mine, theirs in zip(a[:-1], b[:-1], strict=True):
        assert torch.equal(mine[a.valid], theirs[a.valid])


def commit_again(page: Committed, tiers: Tensor) -> Committed:
    """The same values with other tiers."""
    return Committed(page.layout, tiers, page.key, page.value, *encode(page.key, page.value, tiers, page.layout))


# What views read


@every_sample
def test_every_token_reads_within_half_a_bin_of_its_tier(page: Committed) -> None:
    high, low = page.layout.high, page.layout.low
    far = decode(page.records, page.layout, near=False)
    centre = far.key_centre[:, :, None]
    for tier, (key_bits, value_bits) in formats(page.layout).items():
        check_reading(page.key - centre, far.keys() - centre, key_bits, low.key_bits, page.tiers == tier)
        check_reading(page.value, far.values(), value_bits, low.value_bits, page.tiers == tier)
    assert torch.equal(far.valid, page.tiers != PRUNED)
    assert not far.keys()[~far.valid].any()
    assert not far.values()[~far.valid].any()
    if page.layout.near:
        near = decode(page.records, page.layout, near=True)
        assert bool(near.valid.all())
        check_reading(page.key - centre, near.keys() - centre, high.key_bits, low.key_bits, near.valid)
        check_reading(page.value, near.values(), high.value_bits, low.value_bits, near.valid)


def test_each_record_may_be_read_at_a_view_of_its_own() -> None:
    layout = small_layout()
    page = commit(layout, torch.stack([TIER_MAPS["random"]((2, 32), seed) for seed in range(4)]), seed=0)
    near = torch.tensor([True, False, False, True])
    mixed, at = (decode(page.records, layout, near), {n: decode(page.records, layout, near=n) for n in (True, False)})
    for i, n in enumerate(near.tolist()):
        assert_same_view(View(*(x[i] for x in mixed)), View(*(x[i] for x in at[n])))


@every_sample
def test_a_low_code_is_the_high_code_with_its_low_bits_cut_off(page: Committed) -> None:
    everything_high = commit_again(page, torch.full_like(page.tiers, HIGH))
    everything_low = commit_again(page, torch.full_like(page.tiers, LOW))
    high, low = (decode(p.records, p.layout, near=False) for p in (everything_high, everything_low))
    assert torch.equal(low.key, high.key >> page.layout.key_refine_bits)
    assert torch.equal(low.value, high.value >> page.layout.value_refine_bits)


@every_pair
def test_tiers_decide_the_far_view_alone(pair: tuple[Tier, Tier]) -> None:
    """Pruning and lowering never touch the near view."""
    layout = RecordLayout(64, 3, 80, *pair)
    shape = (layout.num_kv_heads, layout.page_size)
    first, *others = (
        decode(commit(layout, pattern(shape, 1)[None], seed=5).records, layout, near=True)
        for pattern in TIER_MAPS.values()
    )
    for other in others:
        assert_same_view(first, other)


# Headers


@every_sample
def test_header_tells_counts_offsets_and_tiers(page: Committed) -> None:
    layout, header = page.layout, read_header(page.records, page.layout)
    counts = TierCounts.of(page.tiers)
    for said, true in zip(header.counts, counts, strict=True):
        assert torch.equal(said, true)
    assert torch.equal(header.nbytes.long(), page.nbytes)
    assert torch.equal(header.blocks.long() * layout.block_bytes >= page.nbytes, torch.tensor([True] * 3))
    assert torch.equal((header.blocks.long() - 1) * layout.block_bytes < page.nbytes, torch.tensor([True] * 3))
    assert header.level.tolist() == [L.LEVEL_NEAR if layout.near else L.LEVEL_FAR] * 3
    assert not header.block_list.any()
    assert torch.equal(read_tiers(page.records, layout), page.tiers)
    words = page.records.view(torch.int32)
    assert words[:, L.W_MAGIC].tolist() == [L.MAGIC] * 3
    heads = words[:, layout.head_word :][:, : 4 * layout.num_kv_heads].unflatten(1, (-1, 4)).long()
    sections = layout.sections(counts)
    assert torch.equal(heads[..., 1:], torch.stack([sections.base, sections.refine, sections.near], dim=-1))


def test_tier_map_is_planar_over_positions() -> None:
    """Token t in byte t % (P / 4), bits 2 * (t // (P / 4))."""
    layout = RecordLayout(64, 2, 64, TIERS["k8v4"], TIERS["k4v2"])
    tiers = TIER_MAPS["random"]((2, 64), 3)[None]
    record = commit(layout, tiers, seed=0).records[0].tolist()
    for h in range(2):
        start = layout.tier_map_start + h * 16
        read = [record[start + t % 16] >> (2 * (t // 16)) & 3 for t in range(64)]
        assert read == tiers[0, h].tolist()


@few(80)
@given(rng=dice)
def test_a_reader_of_the_first_block_finds_the_block_list_and_the_heads(rng: Random) -> None:
    layout = random_layout(rng)
    assert 4 * (layout.head_word + L.HEAD_WORDS * layout.num_kv_heads) <= layout.block_bytes
    assert layout.block_bytes & (layout.block_bytes - 1) == 0
    assert layout.head_word == layout.list_word + layout.max_blocks
    assert layout.tier_map_start + layout.num_kv_heads * layout.page_size // 4 <= layout.header_bytes


@few(100)
@given(rng=dice)
def test_no_tiers_make_a_record_longer_than_what_is_reserved(rng: Random) -> None:
    layout, g = random_layout(rng), generator(rng.getrandbits(32))
    cuts = torch.randint(0, layout.page_size + 1, (3, 64, layout.num_kv_heads), generator=g).sort(0).values
    counts = TierCounts(cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1])
    assert int(layout.sections(counts).end.max()) <= layout.record_bytes


# Cuts


@every_sample
def test_a_trim_leaves_the_far_view_bit_identical(page: Committed) -> None:
    before = decode(page.records, page.layout, near=False)
    assert_same_view(decode(cut(page.records, page.layout, L.LEVEL_FAR), page.layout, near=False), before)


@every_sample
def test_a_demotion_reads_every_far_token_as_if_committed_low(page: Committed) -> None:
    demoted = decode(cut(page.records, page.layout, L.LEVEL_BASE), page.layout, near=False)
    low = commit_again(page, torch.where(page.tiers != PRUNED, LOW, page.tiers))
    assert_same_view(demoted, decode(low.records, low.layout, near=False))


@every_sample
def test_a_cut_frees_the_tail_and_touches_no_other_byte(page: Committed) -> None:
    layout, before = page.layout, page.records.clone()
    sections = layout.sections(TierCounts.of(page.tiers))
    lengths = {L.LEVEL_BASE: sections.refine[:, 0], L.LEVEL_FAR: sections.near[:, 0], L.LEVEL_NEAR: sections.end}
    full = L.LEVEL_NEAR if layout.near else L.LEVEL_FAR
    for level, length in lengths.items():
        after = cut(page.records, layout, level)
        header = read_header(after, layout)
        assert header.level.tolist() == [min(level, full)] * 3
        assert torch.equal(header.nbytes.long(), length)
        assert torch.equal(header.blocks.long(), -(-length // layout.block_bytes))
        changed = torch.zeros(layout.record_bytes, dtype=torch.bool)
        for word in (L.W_BLOCKS, L.W_BYTES, L.W_LEVEL):
            changed[4 * word : 4 * word + 4] = True
        for n in range(3):
            kept = torch.arange(layout.record_bytes) < length[n]
            assert torch.equal(after[n][kept & ~changed], before[n][kept & ~changed])
            assert not after[n][~kept].any()
    assert torch.equal(page.records, before)


def test_cuts_compose() -> None:
    """Demoting a trimmed record equals demoting at once, and nothing grows back."""
    layout = RecordLayout(64, 2, 64, TIERS["k8v4"], TIERS["k4v2"])
    page = commit(layout, TIER_MAPS["random"]((2, 64), 3)[None], seed=0)
    trimmed = cut(page.records, layout, L.LEVEL_FAR)
    demoted = cut(page.records, layout, L.LEVEL_BASE)
    assert torch.equal(cut(trimmed, layout, L.LEVEL_BASE), demoted)
    assert torch.equal(cut(demoted, layout, L.LEVEL_NEAR), demoted)


def test_an_unknown_level_is_refused() -> None:
    layout = RecordLayout(64, 2, 64, TIERS["k8v4"], TIERS["k4v2"])
    with pytest.raises(ValueError, match=r"level 0.*1 \(base\), 2 \(far\), 3 \(near\)"):
        cut(torch.zeros(1, layout.record_bytes, dtype=torch.uint8), layout, 0)


# Sizes


@pytest.mark.parametrize(
    ("heads", "head_dim"), [(8, 128), (4, 128), (2, 64), (3, 64)], ids=["Llama-3-8B", "Qwen2.5-7B", "0.5B", "SmolLM2"]
)
def test_padding_is_a_few_percent(heads: int, head_dim: int) -> None:
    layout = RecordLayout(128, heads, head_dim, TIERS["k8v4"], TIERS["k4v2"])
    data = heads * 128 * (8 + head_dim * (8 + 4) // 8)
    assert 0 <= layout.record_bytes - layout.header_bytes - data <= 0.035 * layout.record_bytes


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@every_pair
def test_data_of_both_tiers_take_the_bytes_of_their_bits(pair: tuple[Tier, Tier], head_dim: int) -> None:
    (high, low), layout = pair, RecordLayout(128, 4, head_dim, *pair)
    size = layout.token_bytes
    assert size.scale == 8
    assert (size.key_base + size.value_base) * 8 == head_dim * sum(low)
    assert (size.key_base + size.value_base + size.key_refine + size.value_refine) * 8 == head_dim * sum(high)
    for key, value in (low, (high.key_bits - low.key_bits, high.value_bits - low.value_bits)):
        assert sum(key_planes(key)) == key
        assert sum(value_planes(value)) == value


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"page_size": 100}, "page size 100 is not a multiple of 16"),
        ({"page_size": 0}, "page size 0"),
        ({"page_size": 512}, "page size 512"),
        ({"head_dim": 72}, "head_dim 72 is not a multiple of 16"),
        ({"head_dim": 0}, "head_dim 0"),
        ({"head_dim": 528}, "head_dim 528"),
        ({"v_head_dim": 24}, "v_head_dim 24"),
        ({"num_kv_heads": 0}, "at least one KV head"),
        ({"high": TIERS["k4v2"], "low": TIERS["k8v4"]}, "tiers k4v2,k8v4: .* key of the high tier, not -4"),
        ({"high": TIERS["k8v8"], "low": TIERS["k4v2"]}, "tiers k8v8,k4v2: .* value of the high tier, not 6"),
        ({"mid": TIERS["k4v2"]}, "tiers k8v4,k4v2,k4v2: the middle tier must have the keys of one"),
        ({"mid": TIERS["k8v8"]}, "tiers k8v4,k8v8,k4v2: the middle tier must"),
    ],
)
def test_what_the_layout_cannot_hold_is_refused_by_name(changes: dict[str, int | Tier], says: str) -> None:
    shape = {"page_size": 128, "num_kv_heads": 4, "head_dim": 128, "high": TIERS["k8v4"], "low": TIERS["k4v2"]}
    with pytest.raises(ValueError, match=says):
        RecordLayout(**(shape | changes))  # type: ignore[arg-type]


def test_more_heads_than_any_block_size_holds_are_refused() -> None:
    with pytest.raises(ValueError, match="1024 KV heads of 256 are too long"):
        RecordLayout(256, 1024, 256, TIERS["k8v4"], TIERS["k4v2"])
