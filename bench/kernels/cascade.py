"""Rows of bench.kernels: requests with one prefix, its pages read once for all of them or once for each."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import bench.common.checkout  # noqa: F401
from bench.kernels.cases import PAGE, ROTATION, WINDOW, Shape, draw_tiers, layout_of, record_bytes
from bench.kernels.pages import CHECKED_PAGES, Committed, error_of, fill, normal, plan_for, sample_records, shuffled
from bench.kernels.timing import Setup, bandwidth, measure, row_of
from leankv_kernels import RecordStore

BATCH, PREFIX = 32, 4096
TAILS = (0, 1)
"""Whole pages of its own that each request has behind the prefix: none where its tail fits into the open page."""
TIERS = ("k8v4", "k4v2", "mix")
PLANS = 25


def prefix_pages(batch: int, prefix: int, tail: int) -> Tensor:
    """Page ids ``[batch, prefix + tail]``, the first ``prefix`` alike."""
    ids = shuffled(1, prefix + batch * tail)[0]
    return torch.cat([ids[:prefix].expand(batch, -1), ids[prefix:].view(batch, tail)], dim=1)


def plan_seconds(pages: Tensor, cascade: bool) -> float:
    """What planning takes, the median of some."""
    seconds = []
    for _ in range(PLANS):
        start = time.perf_counter()
        plan_for(pages, 1, torch.device("cpu"), cascade)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def shared_prefix(shape: Shape, mix: str, pages: Tensor, setup: Setup) -> tuple[Committed, Committed]:
    """The same pages and queries under a plan with groups and one without."""
    layout, tiers = layout_of(shape, mix), draw_tiers(shape, mix)
    far, near = record_bytes(layout, tiers)
    own = torch.unique(pages)
    is_near = torch.isin(own, pages[:, -WINDOW:])
    which = (own - 1) % len(tiers)
    nbytes = int(torch.where(is_near, near[which], far[which]).sum())
    store = RecordStore(layout, setup.layers(nbytes), len(own), setup.device)
    fill(store, *sample_records(shape, layout, tiers, setup))
    q = normal(len(pages), shape.query_heads, shape.head_dim, device=setup.device, seed=3)
    some = plan_for(pages[:3, :CHECKED_PAGES], 1, setup.device)
    error = error_of(store, q[:3], some, shape, setup)
    grouped, plain = (
        Committed(shape, store, plan_for(pages, 1, setup.device, cascade), q, nbytes, error)
        for cascade in (True, False)
    )
    results = [setup.ops.attend_committed(q, store, 0, x.plan, shape.scale, ROTATION) for x in (grouped, plain)]
    if not all(torch.equal(a, b) for a, b in zip(*results, strict=True)):
        raise AssertionError("grouped and ungrouped attention differ")
    return grouped, plain


def cascade_rows(
    shape: Shape, prefix: int, tail: int, batch: int, mixes: Sequence[str], setup: Setup
) -> list[dict[str, Any]]:
    """attend_committed of one query per request, all mixes in the same rounds.

    Args:
        shape: the model's.
        prefix: tokens that all requests share.
        tail: whole pages behind them that each has for itself.
        batch: requests.
        mixes: names of mixes of tiers.
        setup: the run's.
    """
    pages = prefix_pages(batch, prefix // PAGE, tail)
    read, read_bytes = bandwidth(setup.device)
    compared = {mix: shared_prefix(shape, mix, pages, setup) for mix in mixes}
    everyone = [read]
    for mix, (grouped, plain) in compared.items():
        everyone += [grouped.contestant(f"grouped|{mix}", setup.ops), plain.contestant(f"ungrouped|{mix}", setup.ops)]
    seconds = measure(everyone, setup)
    plans = {"plan_us": 1e6 * plan_seconds(pages, True), "plain_plan_us": 1e6 * plan_seconds(pages, False)}
    rows = []
    for mix, (grouped, _) in compared.items():
        what = {"op": f"cascade +{tail}", "shape": shape.name, "tiers": mix, "context": prefix, "batch": batch}
        row = row_of(setup, what, seconds, f"grouped|{mix}", [f"ungrouped|{mix}"], grouped.nbytes, 0, read_bytes)
        rows.append(row | plans | {"layers": grouped.store.num_layers, "error": grouped.error})
    del compared, everyone
    gc.collect()
    return rows
