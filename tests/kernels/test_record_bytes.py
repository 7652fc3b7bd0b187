"""Where the bytes of a record lie: against a second reading of the documentation, and bit by bit."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import numpy as np
import torch
from hypothesis import given

from leankv_kernels import HIGH, LOW, MID, PRUNED, RecordLayout, TierCounts
from leankv_kernels import layout as L
from leankv_kernels.layout import key_planes, value_planes
from leankv_kernels.reference.record import decode
from tests.kernels import dense, naive_record
from tests.kernels.draws import Committed, formats, random_layout, random_tier_maps
from tests.kernels.kernelutil import dice, every_sample, few


@every_sample
def test_the_bytes_of_every_token_lie_where_the_layout_says(page: Committed) -> None:
    """Read whole records from the documentation alone, as a kernel author would; each kind of run is met somewhere."""
    layout, bits = page.layout, {"key": page.layout.high.key_bits, "value": page.layout.high.value_bits}
    centre = decode(page.records, layout, near=False).key_centre
    wanted = page.key - centre[:, :, None]
    assert torch.equal(
        centre,
        torch.from_numpy(dense.centre_of(page.key.transpose(0, 2).numpy())).transpose(0, 1).float().half().double(),
    )
    low, high = layout.low, layout.high
    master = {
        "key": dense.master_codes(wanted.numpy(), (low.key_bits, high.key_bits)),
        "value": dense.master_codes(page.value.numpy(), (low.value_bits, high.value_bits)),
    }
    for n, record in enumerate(page.records.numpy()):
        read = {kind: np.zeros((*page.tiers.shape[1:], bits[kind]), dtype=np.int64) for kind in bits}
        for run in naive_record.runs(layout, page.tiers[n].numpy()):
            at = (n, run.head, run.positions)
            if run.kind == "scale":
                numbers = [master[kind][i][at] for kind in bits for i in (1, 2)]
                np.testing.assert_array_equal(naive_record.scales(run, record), np.stack(numbers))
                continue
            want = master[run.kind][0][at].astype(np.int64) >> (8 - run.part.below - run.part.bits)
            got = naive_record.codes(run, record, naive_record.dim_of(layout, run.kind))
            np.testing.assert_array_equal(got, want & (2**run.part.bits - 1))
            read[run.kind][run.head, run.positions, run.part.below : run.part.below + run.part.bits] += 1
        # Every bit of every code that is kept is in one run and no other.
        tiers = page.tiers[n].numpy()
        for kind in bits:
            kept = np.zeros(tiers.shape, dtype=np.int64)
            for tier, form in formats(layout).items():
                kept[tiers == tier] = getattr(form, f"{kind}_bits")
            kept = np.full_like(kept, bits[kind]) if layout.near else kept
            np.testing.assert_array_equal(read[kind], np.arange(bits[kind]) < kept[..., None])


@every_sample
def test_what_is_not_a_run_is_zero(page: Committed) -> None:
    """Padding and the codes of tokens that a quad lacks, so the bytes are a function of the tokens alone."""
    for n, record in enumerate(page.records.numpy()):
        runs = naive_record.runs(page.layout, page.tiers[n].numpy())
        behind = np.ones(len(record), dtype=bool)
        behind[: page.layout.header_bytes] = False
        for run in runs:
            behind[run.start : run.start + run.nbytes] = False
            if run.kind != "value":
                continue
            for width, plane in naive_record.planes(run, record, page.layout.v_head_dim):
                share, rows = 8 // width, plane.reshape(-1, page.layout.v_head_dim)
                last = (run.first + len(run.positions)) % share
                assert not (rows[0] & (2 ** (width * (run.first % share)) - 1)).any()
                assert not last or not (rows[-1] >> width * last).any()
        assert not record[behind].any()


@few(40)
@given(rng=dice)
def test_places_name_every_bit_once(rng: Random) -> None:
    """No two tokens share a bit, and nothing lies in the header or behind the record's end."""
    layout = random_layout(rng)
    tiers = random_tier_maps(rng, layout, n=1)
    end = int(layout.sections(TierCounts.of(tiers)).end[0])
    pieces = [(at[:, None] + np.arange(width)).ravel() for at, width in bits_of(layout, layout.places(tiers))]
    bits = np.concatenate(pieces)
    assert not bits.size or 8 * layout.header_bytes <= bits.min() <= bits.max() < 8 * end
    taken = np.bincount(bits)
    assert taken.max(initial=0) <= 1
    kept = int((tiers != PRUNED).sum() if not layout.near else tiers.numel())
    refined = [tiers.numel()] * 2 if layout.near else [int(x.sum()) for x in layout.refined(TierCounts.of(tiers))]
    size = layout.token_bytes
    fine = (size.key_refine, size.value_refine)
    base = sum(size) - sum(fine)
    assert taken.sum() == 8 * (kept * base + sum(n * width for n, width in zip(refined, fine, strict=True)))
    assert end <= layout.record_bytes


def bits_of(layout: RecordLayout, places: L.Places) -> Iterator[tuple[np.ndarray, int]]:
    """First bit, counted from the record's start, and number of bits, of every piece of a token's data."""
    token, dim, value_dim = places.token, layout.head_dim, layout.v_head_dim
    kept = places.scale >= 0
    for i in range(4):
        yield 8 * (places.scale + i * places.scale_stride)[kept].numpy(), 16
    for span in places.key:
        for word in range(dim // 8):
            at = span.key_word(token, torch.tensor(word), dim)
            yield 8 * at[at >= 0].numpy(), 8 * span.width
    for span in places.value:
        for channel in range(value_dim):
            at = span.value_byte(token, torch.tensor(channel), value_dim)
            yield (8 * at + span.width * (token % span.share))[at >= 0].numpy(), span.width


@few(60)
@given(rng=dice)
def test_sections_hold_what_their_worth_says(rng: Random) -> None:
    """Base codes of far tokens, then their refinement, then the near part; each from its header's offset on."""
    layout = random_layout(rng)
    tiers = random_tier_maps(rng, layout)
    sections, places = layout.sections(TierCounts.of(tiers)), layout.places(tiers)
    starts = [sections.base[:, 0], sections.refine[:, 0], sections.near[:, 0], sections.end]
    assert bool((starts[0] == layout.header_bytes).all())
    key_base, value_base = len(key_planes(layout.low.key_bits)), len(value_planes(layout.low.value_bits))
    word = torch.zeros_like(places.token)
    fine_mid = [(tiers == MID) & fine for fine in (layout.mid_keys_fine, layout.mid_values_fine)]
    pieces = [(places.scale, True, fine_mid[0])]
    for i, s in enumerate(places.key):
        pieces.append((s.key_word(places.token, word, layout.head_dim), i < key_base, fine_mid[0]))
    for i, s in enumerate(places.value):
        pieces.append((s.value_byte(places.token, word, layout.v_head_dim), i < value_base, fine_mid[1]))
    for at, is_base, fine in pieces:
        near_part = (tiers == PRUNED) | ~((tiers == HIGH) | fine | is_base)
        section = torch.where(near_part, 2, 0 if is_base else 1)
        for n, i in np.ndindex(len(tiers), 3):
            inside = at[n][section[n] == i]
            if i == 2 and not layout.near:
                assert bool((inside < 0).all())
            else:
                assert bool(((starts[i][n] <= inside) & (inside < starts[i + 1][n])).all())


@few(60)
@given(rng=dice)
def test_runs_are_aligned_and_fill_the_sections_of_their_heads(rng: Random) -> None:
    """From a multiple of 16 on, with less than 16 bytes between them; the header's offsets find each head's first."""
    layout = random_layout(rng)
    tiers = random_tier_maps(rng, layout, n=1)
    sections = layout.sections(TierCounts.of(tiers))
    runs = naive_record.runs(layout, tiers[0].numpy())
    assert len(runs) == layout.num_kv_heads * (10 if layout.near else 5)
    assert all(run.start % 16 == 0 for run in runs)
    ends = [*(run.start for run in runs[1:]), int(sections.end[0])]
    assert all(0 <= end - run.start - run.nbytes < 16 for run, end in zip(runs, ends, strict=True))
    for section, said in enumerate(sections[: 2 + layout.near]):
        first = {run.head: run.start for run in reversed(runs) if run.section == section}
        assert said[0].tolist() == [first[head] for head in range(layout.num_kv_heads)]


@few(40)
@given(rng=dice)
def test_tokens_are_numbered_by_worth_and_position(rng: Random) -> None:
    """Far ones high first, then mid, then low, pruned ones apart; each class in order of position."""
    layout = random_layout(rng)
    tiers = random_tier_maps(rng, layout, n=1)
    number = layout.places(tiers).token[0]
    for h, row in enumerate(tiers[0]):
        positions = [row.eq(tier).nonzero().flatten() for tier in (HIGH, MID, LOW, PRUNED)]
        far = torch.cat(positions[:3])
        assert number[h][far].tolist() == list(range(len(far)))
        assert number[h][positions[3]].tolist() == list(range(len(positions[3])))
