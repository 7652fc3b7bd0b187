"""The hooks of sampling by seed and of deterministic inference: each takes, says when not, and does what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from leankv_patches import choice_seeds, invariant_ops, seeded_draw, seeded_sampling

TARGETS = [*seeded_sampling.TARGETS, invariant_ops.TARGET, choice_seeds.TARGET]
PATCHES = [seeded_sampling, invariant_ops, choice_seeds]


@pytest.fixture
def hooks(own_registry: Callable[[Iterable[str]], None]) -> None:
    own_registry(TARGETS)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.__name__)
def test_a_patch_takes_and_says_where_it_has_not(patch: Any, hooks: None) -> None:
    assert "could not be hooked" in (patch.problem() or "")
    patch.install()
    HookRegistry.apply_hooks()
    assert patch.problem() is None


def test_changed_arguments_are_a_problem(hooks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SamplingBatchInfo, "merge_batch", lambda self, other, how: None)
    seeded_sampling.install()
    HookRegistry.apply_hooks()
    assert "merge_batch takes ['self', 'other', 'how'] now" in (seeded_sampling.problem() or "")


# Which rows have seeds


def info(seeds: list[int | None], deterministic: bool = False) -> SamplingBatchInfo:
    """A batch of these requests as SGLang makes it, with the seeds noted."""
    rows = len(seeds)
    made = SamplingBatchInfo(
        temperatures=torch.ones(rows, 1),
        top_ps=torch.ones(rows),
        top_ks=torch.full((rows,), 1 << 30),
        min_ps=torch.zeros(rows),
        is_all_greedy=False,
        is_any_greedy=False,
        need_top_p_sampling=False,
        need_top_k_sampling=False,
        need_min_p_sampling=False,
        vocab_size=8,
        penalizer_orchestrator=SimpleNamespace(merge=lambda other: None, filter=lambda rows: None),
        device="cpu",
    )
    if deterministic:
        made.sampling_seed = torch.tensor([42 if seed is None else seed for seed in seeds])
    reqs = [SimpleNamespace(sampling_params=SimpleNamespace(sampling_seed=seed)) for seed in seeds]
    seeded_sampling.note_seeds(made, SamplingBatchInfo, SimpleNamespace(reqs=reqs), 8)
    return made


def seeds_of(batch: SamplingBatchInfo) -> list[int | None] | None:
    if batch.sampling_seed is None:
        return None
    return [seed if has else None for seed, has in batch.sampling_seed.tolist()]


def test_seeds_stay_with_their_rows(hooks: None) -> None:
    """Through SGLang's own joining and selecting."""
    seeded_sampling.install()
    HookRegistry.apply_hooks()
    batch, bare = info([None, None]), info([None])
    batch.merge_batch(bare)
    assert seeds_of(batch) is None
    batch.merge_batch(info([0, None, -5]))
    assert seeds_of(batch) == [None, None, None, 0, None, -5]
    batch.merge_batch(info([None]))
    keep = [1, 3, 5, 6]
    batch.filter_batch(keep, torch.tensor(keep))
    assert seeds_of(batch) == [None, 0, -5, None]


def test_under_the_flag_every_row_has_a_seed() -> None:
    assert seeds_of(info([None, 7], deterministic=True)) == [42, 7]


# What is drawn


class Capture(NamedTuple):
    """SGLang's note of what it drew from."""

    weights: Any
    selected_weight: Any


PROBS = torch.softmax(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)), -1)
POSITIONS = torch.tensor([10, 11, 12])
THEIRS = torch.tensor([90, 91, 92], dtype=torch.int32)


def sampled(batch: SamplingBatchInfo, deterministic: bool = False, capture: Any = None) -> tuple[Any, Any, list[Any]]:
    """Tokens and capture, and the batches that SGLang's own sampling was asked about."""
    asked = []

    def upstream(_sampler: Any, _probs: Any, told: SamplingBatchInfo, _positions: Any, _simple: bool) -> Any:
        asked.append(told)
        return THEIRS, capture

    sampler = SimpleNamespace(enable_deterministic=deterministic)
    found, taken = seeded_sampling.sample(upstream, sampler, PROBS, batch, POSITIONS, True)
    return found.tolist(), taken, asked


def drawn(seeds: list[int]) -> list[int]:
    return seeded_draw.draw(PROBS[: len(seeds)], torch.tensor(seeds), POSITIONS[: len(seeds)]).tolist()


def test_rows_with_a_seed_are_drawn_by_it_and_others_as_before() -> None:
    batch = info([3, None, 4])
    found, _, asked = sampled(batch)
    ours = drawn([3, 0, 4])
    assert found == [ours[0], 91, ours[2]]
    # SGLang's sampler knows nothing of seeds, which FlashInfer's would refuse; the batch keeps them.
    assert asked[0].sampling_seed is None
    assert seeds_of(batch) == [3, None, 4]


def test_without_seeds_nothing_is_drawn_here() -> None:
    assert sampled(info([None] * 3))[0] == THEIRS.tolist()
    batch = info([3, None, 4])
    batch.sampling_seed[:, 1] = 0
    assert sampled(batch)[0] == THEIRS.tolist()


def test_under_the_flag_sglang_draws_nothing() -> None:
    found, _, asked = sampled(info([3, None, 4], deterministic=True), deterministic=True)
    assert found == drawn([3, 42, 4])
    assert asked == []


def test_a_capture_is_not_told_of_the_token_that_was_not_taken() -> None:
    _, taken, _ = sampled(info([3, None, 4]), capture=Capture("weights", "of another token"))
    assert taken == Capture("weights", None)


# The other two


def test_sglangs_invariant_ops_are_for_gpus() -> None:
    seen: list[Any] = []
    for device in ("cpu", "cuda"):
        invariant_ops.enable(seen.append, SimpleNamespace(device=device))
    assert [runner.device for runner in seen] == ["cuda"]


@pytest.mark.parametrize(
    ("seed", "deterministic", "sent"),
    [
        (5, False, [5, 6, 7]),
        (2**63 - 1, False, [2**63 - 1, -(2**63), -(2**63) + 1]),
        (None, False, [None] * 3),
        (None, True, [None, 43, 44]),
    ],
)
def test_each_choice_has_a_seed_of_its_own(seed: int | None, deterministic: bool, sent: list[int | None]) -> None:
    """They share their parameters; the first has the request's seed, so that one choice is the first of several."""
    seen = []

    async def upstream(_manager: Any, request: Any) -> None:
        seen.append(request.sampling_params.sampling_seed)

    manager = SimpleNamespace(server_args=SimpleNamespace(enable_deterministic_inference=deterministic))
    params = SimpleNamespace(sampling_seed=seed)
    for _ in range(3):
        asyncio.run(choice_seeds.send(upstream, manager, SimpleNamespace(sampling_params=params)))
    assert seen == sent
