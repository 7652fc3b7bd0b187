"""Targets: ``SamplingBatchInfo.from_schedule_batch`` and ``merge_batch``, and ``Sampler._sample_from_probs`` of sglang
0.5.23.

Reason: a request's ``seed`` (``sampling_seed`` natively) is silently without effect but with
``--enable-deterministic-inference``, and there it is wrong or fails where :mod:`leankv_patches.seeded_draw` says. Rows
with a seed are drawn by it; all others are drawn as before, in the same random numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from leankv_patches import hook
from leankv_patches.seeded_draw import allowed, draw

_INFO = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo"
BATCH, MERGE = f"{_INFO}.from_schedule_batch", f"{_INFO}.merge_batch"
SAMPLE = "sglang.srt.layers.sampler.Sampler._sample_from_probs"
TARGETS = {
    BATCH: ["cls", "batch", "vocab_size"],
    MERGE: ["self", "other"],
    SAMPLE: ["self", "probs", "sampling_info", "positions", "simple_sampling_case"],
}
"""What is hooked, with its arguments."""


def note_seeds(info: Any, _cls: type, batch: Any, vocab_size: int) -> None:
    """Have ``info.sampling_seed`` be int64 ``[rows, 2]``: the seed, and whether there is one; None if no row has any.

    SGLang selects and joins its rows as the batch changes.
    """
    if info.sampling_seed is not None:
        # Deterministic inference: every row has one.
        info.sampling_seed = torch.stack([info.sampling_seed, torch.ones_like(info.sampling_seed)], dim=1)
        return
    seeds = [req.sampling_params.sampling_seed for req in batch.reqs]
    if any(seed is not None for seed in seeds):
        pairs = [[seed or 0, seed is not None] for seed in seeds]
        info.sampling_seed = torch.tensor(pairs, dtype=torch.int64).to(info.temperatures.device, non_blocking=True)


def fill_seeds(info: Any, other: Any) -> None:
    """Before two batches become one: where one of them has seeds, give the other rows without."""
    if (info.sampling_seed is None) != (other.sampling_seed is None):
        bare = info if info.sampling_seed is None else other
        rows = bare.temperatures
        bare.sampling_seed = torch.zeros(len(rows), 2, dtype=torch.int64, device=rows.device)


def sample(
    original: Callable[..., Any],
    sampler: Any,
    probs: Tensor,
    sampling_info: Any,
    positions: Tensor,
    simple_sampling_case: bool,
) -> tuple[Tensor, Any]:
    """``Sampler._sample_from_probs`` with the rows that have a seed drawn by it."""
    info, simple = sampling_info, simple_sampling_case
    seeds = info.sampling_seed
    # Rows with seeds may have left since. To ask a GPU would mean to wait for it.
    if seeds is None or (seeds.device.type == "cpu" and not seeds[:, 1].any()):
        return original(sampler, probs, _without_seeds(info), positions, simple)
    passes = None if simple else allowed(probs, info.top_ks, info.top_ps, info.min_ps)
    ours = draw(probs, seeds[:, 0], positions, passes)
    if sampler.enable_deterministic and info.sampling_mask_batch_indices is None:
        return ours, None
    others, capture = original(sampler, probs, _without_seeds(info), positions, simple)
    if capture is not None:
        # It was of the token that SGLang drew; without, SGLang looks it up.
        capture = capture._replace(selected_weight=None)
    return torch.where(seeds[:, 1].bool(), ours, others), capture


def _without_seeds(info: Any) -> Any:
    if info.sampling_seed is not None:
        info = copy.copy(info)
        info.sampling_seed = None
    return info


def install() -> None:
    """Register the hooks. Call while sglang loads its plugins."""
    hook.register(BATCH, note_seeds, "AFTER")
    hook.register(MERGE, fill_seeds, "BEFORE")
    hook.register(SAMPLE, sample, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "sampling by seed")
