"""A greedy row beside rows that sample takes the token and the log-probabilities that it has alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.layers import logprob_processor
from sglang.srt.layers import sampler as upstream
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.layers.logprob_processor import OutputLogprobProcessor
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo
from sglang.srt.sampling.sampling_params import TOP_K_ALL

from leankv_patches import greedy_rows, seeded_sampling

VOCAB = 40
TARGETS = [*greedy_rows.TARGETS, *seeded_sampling.TARGETS]


def info(top_ks: list[int], temperatures: list[float], top_p: float = 1.0) -> SamplingBatchInfo:
    """A batch of rows with these, as SGLang makes it."""
    return SamplingBatchInfo(
        temperatures=torch.tensor(temperatures).view(-1, 1),
        top_ps=torch.full((len(top_ks),), top_p),
        top_ks=torch.tensor(top_ks, dtype=torch.int32),
        min_ps=torch.zeros(len(top_ks)),
        is_all_greedy=all(k <= 1 for k in top_ks),
        is_any_greedy=any(k <= 1 for k in top_ks),
        need_top_p_sampling=top_p != 1.0,
        need_top_k_sampling=any(k != TOP_K_ALL for k in top_ks),
        need_min_p_sampling=False,
        vocab_size=VOCAB,
        device="cpu",
    )


@pytest.fixture
def sample(
    own_registry: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[torch.Tensor, LogitsProcessorOutput]]:
    """SGLang's sampler with our hooks, on logits, a batch, and how many top log-probabilities each row asks for."""
    own_registry(TARGETS)
    seeded_sampling.install()
    greedy_rows.install()
    HookRegistry.apply_hooks()
    assert greedy_rows.problem() is None
    monkeypatch.setattr(
        upstream, "get_exec", lambda: SimpleNamespace(kernel=SimpleNamespace(sampling_backend="pytorch"))
    )
    sampler = upstream.Sampler.__new__(upstream.Sampler)
    torch.nn.Module.__init__(sampler)
    sampler.rl_on_policy_target = None
    sampler.enable_deterministic = sampler.use_ascend_backend = sampler.use_log_softmax_logprob = False
    sampler.output_logprob_processor = OutputLogprobProcessor()

    def run(logits: torch.Tensor, batch: SamplingBatchInfo, tops: list[int]) -> Any:
        out = LogitsProcessorOutput(next_token_logits=logits.clone())
        positions, nones = torch.arange(len(logits)), [None] * len(logits)
        return sampler(out, batch, bool(tops), tops or [0] * len(logits), nones, positions), out

    return run


def coarse(rows: int, seed: int) -> torch.Tensor:
    """Logits with many ties, at the top too."""
    logits = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)).mul(2).round().div(4)
    return logits.clamp_(max=0.75)


@pytest.mark.parametrize("top_p", [1.0, 0.7])
@pytest.mark.parametrize("logprobs", [False, True])
def test_company_changes_nothing(sample: Any, top_p: float, logprobs: bool) -> None:
    for seed in range(8):
        logits = coarse(4, seed)
        # Row 2 is greedy by its top_k; its temperature changes nothing alone.
        greedy = [0, 2]
        tops = [3, 5, 2, 7] if logprobs else []
        tokens, out = sample(logits, info([1, TOP_K_ALL, 1, 20], [1.0, 0.8, 0.5, 1.3], top_p), tops)
        for row in greedy:
            its = [tops[row]] if logprobs else []
            alone, own = sample(logits[row : row + 1], info([1], [1.0]), its)
            assert tokens[row] == alone[0] == logits[row].argmax()
            if logprobs:
                assert out.next_token_logprobs[row] == own.next_token_logprobs[0]
                for told, mine in (
                    (out.next_token_top_logprobs_val, own.next_token_top_logprobs_val),
                    (out.next_token_top_logprobs_idx, own.next_token_top_logprobs_idx),
                ):
                    assert torch.equal(told[row], mine[0])


def test_rows_that_sample_stay_as_they_were(sample: Any) -> None:
    """The same random numbers, and log-probabilities of the probabilities drawn from."""
    logits, batch = coarse(3, 1), info([1, TOP_K_ALL, TOP_K_ALL], [1.0, 0.5, 2.0])
    torch.manual_seed(3)
    tokens, out = sample(logits, batch, [1, 1, 1])
    torch.manual_seed(3)
    probs = torch.softmax(logits / batch.temperatures, -1)
    drawn, _ = inspect.unwrap(upstream.Sampler._sample_from_probs)(None, probs.clone(), batch, torch.arange(3), False)
    assert tokens[1:].tolist() == drawn[1:].tolist()
    assert torch.allclose(out.next_token_logprobs[1:], probs.log()[torch.arange(3), drawn.long()][1:])


@given(st.integers(0, 10**6), st.integers(1, VOCAB), st.integers(1, VOCAB))
def test_the_most_anybody_asks_for_does_not_change_who_ranks(seed: int, few: int, many: int) -> None:
    few, many = sorted((few, many))
    logprobs = coarse(3, seed)
    logprobs[0, :3] = torch.tensor([0.0, -0.0, float("-inf")])
    values, ids = greedy_rows.Ranked(logprobs).topk(many)
    expected = sorted(range(VOCAB), key=lambda token: (-logprobs[0, token].item(), token))[:many]
    assert ids[0].tolist() == expected
    assert torch.equal(values, logprobs.topk(many).values)
    assert torch.equal(ids[:, :few], greedy_rows.Ranked(logprobs).topk(few, dim=1)[1])


def test_prompts_log_probabilities_are_ranked_alike(sample: Any) -> None:
    """SGLang's own function over a chunk of prompts, hooked."""
    logprobs = coarse(5, 3)
    found: list[list[Any]] = []
    for nums in ([2, 2], [2, 9]):
        values: list[Any] = []
        ids: list[Any] = []
        logprob_processor.get_top_logprobs_chunk(logprobs, nums, [3, 2], values, ids, 0)
        found.append([values[0], ids[0]])
    assert found[0] == found[1]
    assert found[0][1][0] == sorted(range(VOCAB), key=lambda token: (-logprobs[0, token].item(), token))[:2]
