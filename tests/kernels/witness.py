"""Runs every op of a backend beside the specification, on the same inputs, and compares what both leave behind."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from leankv_kernels import HIGH, LOW, MID, PRUNED, Ops, Plan, RawPages, RecordStore
from leankv_kernels.reference.record import decode, read_tiers
from tests.kernels.cases import Case, random_splits
from tests.kernels.draws import INTERPRETED

QUERY_EPS = {"cpu": 2.0**-15, "cuda": 2.0**-15, "cuda-emulated": 2.0**-15, "triton": 2.0**-20}
"""What a channel of a query may be off by, relative to the query's largest: the cpu and cuda kernels round it to 15
bits, the triton kernels to two fp16 numbers."""
NIBBLE_EPS = {"cpu": 2.0**-11, "cuda": 2.0**-15, "cuda-emulated": 2.0**-15, "triton": 2.0**-20}
"""The same where all keys have 4 bits."""
OUT_EPS = 1e-3
"""Of the largest value: weights rounded to 14 bits relative to a page's largest, and float32 sums over 10^3 tokens."""
SCORE_EPS = 2.0**-20
"""Of a product in float32, of its exponential, and of their sum: a few units of 2^-24 each."""


@dataclass
class Witness:
    """Ops that call both; results and side effects are the backend's, so whole sequences can run on them.

    Attributes:
        seen: how often each op was compared.
    """

    ops: Ops
    reference: Ops
    seen: dict[str, int] = field(default_factory=dict)
    _twin: RecordStore | None = None

    def as_ops(self) -> Ops:
        """What a driver takes."""
        return Ops("witness", self.attend_open, self.attend_committed, self.merge_states, self.commit_pages)

    def attend_open(
        self, q: Tensor, raw: RawPages, plan: Plan, scale: float, cap: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Outputs, LSE and column scores."""
        self._count("attend_open")
        theirs, at = raw._replace(scores=raw.scores.clone()), raw.at.cpu()
        out, lse = self.ops.attend_open(q, raw, plan, scale, cap)
        want_out, want_lse = self.reference.attend_open(q, theirs, plan, scale, cap)
        written = ~plan.unwritten.cpu()
        key, value = (x[raw.at].cpu().double()[written] for x in (raw.key, raw.value))
        off = SCORE_EPS * (1 + largest_score(q, key, scale))
        check_state(out, lse, want_out, want_lse, value.abs().max().item() * (OUT_EPS + 2 * off), off)
        assert raw.scores.dtype == torch.int32
        mine, want = (scores[raw.at].long() for scores in (raw.scores, theirs.scores))
        # Each query's probability is rounded on its own, and off by as much as its score is.
        allowed = plan.length[:, None, None] + 2 * off * want
        assert bool(((mine - want).abs() <= allowed).all())
        others = [i for i in range(len(raw.scores)) if i not in set(at.tolist())]
        assert torch.equal(raw.scores[others], theirs.scores[others])
        return out, lse

    def attend_committed(
        self, q: Tensor, store: RecordStore, layer: int, plan: Plan, scale: float, rotation: str, cap: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Outputs and LSE."""
        self._count("attend_committed")
        blocks = store.blocks.clone()
        out, lse = self.ops.attend_committed(q, store, layer, plan, scale, rotation, cap)
        want_out, want_lse = self.reference.attend_committed(q, store, layer, plan, scale, rotation, cap)
        assert torch.equal(blocks, store.blocks)
        value, key = largest_reading(store, layer, plan)
        eps = NIBBLE_EPS if store.layout.high.key_bits == 4 else QUERY_EPS
        off = eps[self.ops.name] * (1 + scale * q.double().norm(dim=-1).max().item() * key)
        check_state(out, lse, want_out, want_lse, value * (OUT_EPS + 2 * off), off)
        return out, lse

    def merge_states(
        self,
        out_a: Tensor,
        lse_a: Tensor,
        out_b: Tensor,
        lse_b: Tensor,
        dtype: torch.dtype | None = None,
        sinks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Outputs and LSE."""
        self._count("merge_states")
        assert dtype is None
        out, lse = self.ops.merge_states(out_a, lse_a, out_b, lse_b, sinks=sinks)
        a, b = (out_a.double(), lse_a.double()), (out_b.double(), lse_b.double())
        want_out, want_lse = self.reference.merge_states(*a, *b, sinks=sinks)
        largest = max(x.abs().max().item() for x in (out_a, out_b))
        given = [] if sinks is None else [sinks]
        # An LSE in float32 is off by 2^-24 of its size, and the weights by as much of the difference.
        sizes = [x[x.isfinite()].abs().max().item() for x in (lse_a, lse_b, *given) if x.isfinite().any()]
        off = SCORE_EPS * (1 + max(sizes, default=0.0))
        check_state(out, lse, want_out, want_lse, largest * off * 2, off)
        return out, lse

    def commit_pages(
        self, store: RecordStore, layer: int, pages: Tensor, raw: RawPages, tiers: Tensor, rotation: str
    ) -> None:
        """Blocks, table, ring and usage, byte for byte."""
        self._count("commit_pages")
        for tier, name in ((HIGH, "high"), (MID, "mid"), (LOW, "low"), (PRUNED, "pruned")):
            self.seen[name] = self.seen.get(name, 0) + int((tiers == tier).sum())
        if self._twin is None:
            self._twin = RecordStore(store.layout, store.num_layers, store.num_pages, store.blocks.device)
        self.ops.commit_pages(store, layer, pages, raw, tiers, rotation)
        self.reference.commit_pages(self._twin, layer, pages, raw, tiers, rotation)
        assert_same_store(store, self._twin)

    def _count(self, op: str) -> None:
        self.seen[op] = self.seen.get(op, 0) + 1


def run_beside(ops: Ops, reference: Ops, case: Case, rng: Random, lengths: list[int]) -> Witness:
    """Requests that come and go in any order and chunking; every op of every step is compared."""
    if INTERPRETED:
        lengths = [min(lengths[0], case.page + 9)]
    witness = Witness(ops, reference)
    driver = case.driver(witness.as_ops(), rng.choice((float("nan"), float("inf"), float("-inf"), 6e4)))
    driver.store.blocks[1:-1] = 255  # as halves NaN, as offsets far outside
    rows = rng.sample(range(1, 8), len(lengths))
    requests = [driver.admit(case.tokens(n, rng.getrandbits(32)), row) for n, row in zip(lengths, rows, strict=True)]
    while running := [r for r in requests if r.done < len(r.tokens)]:
        chosen = rng.sample(running, rng.randint(1, len(running)))
        driver.step([(r, random_splits(rng, len(r.tokens) - r.done)[0]) for r in chosen])
    for request in requests:
        assert bool(request.output().isfinite().all())
    return witness


def largest_reading(store: RecordStore, layer: int, plan: Plan) -> tuple[float, float]:
    """Of the pages of a plan, the largest value that their codes can express, and the norm of the longest key."""
    if not plan.pages.numel():
        return 0.0, 0.0
    lay, records = store.layout, store.gather(layer, plan.pages)
    view = decode(records, lay, near=lay.near)
    tiers = read_tiers(records, lay)
    fine = (tiers == HIGH) | ((tiers == MID) & lay.mid_values_fine) | lay.near
    bits = torch.where(fine, lay.high.value_bits, lay.low.value_bits)
    value = view.value_zero.abs() + view.value_scale * 2.0**bits
    return float(value[view.valid].max()) if view.valid.any() else 0.0, float(view.keys().norm(dim=-1).max())


def largest_score(q: Tensor, key: Tensor, scale: float) -> float:
    """A bound on |q.k| * scale."""
    return scale * q.double().norm(dim=-1).max().item() * key.norm(dim=-1).max().item()


def check_state(out: Tensor, lse: Tensor, want_out: Tensor, want_lse: Tensor, out_off: float, lse_off: float) -> None:
    """Close, finite wherever the specification is, float32, and nothing where nothing is read."""
    assert out.dtype == lse.dtype == torch.float32
    assert out.shape == want_out.shape
    assert lse.shape == want_lse.shape
    torch.testing.assert_close(out.double(), want_out, rtol=0, atol=out_off)
    torch.testing.assert_close(lse.double(), want_lse, rtol=0, atol=lse_off + SCORE_EPS)
    assert not out[want_lse == float("-inf")].any()


def assert_same_store(store: RecordStore, other: RecordStore) -> None:
    """The same records in the same blocks, the same free blocks in the same order, and nothing amiss."""
    layers, pages = store.page_table.nonzero(as_tuple=True)
    assert torch.equal(store.page_table, other.page_table)
    for layer in layers.unique().tolist():
        held = pages[layers == layer]
        assert torch.equal(store.gather(layer, held), other.gather(layer, held))
    assert torch.equal(store.ring.free_ids(), other.ring.free_ids())
    assert store.usage() == other.usage()
    assert store.audit() == []
