"""Targets: ``Sampler.forward``, ``_preprocess_logits`` and ``_sample_from_probs``, ``OutputLogprobProcessor
.compute_logprobs`` and the two functions that rank log-probabilities, of sglang 0.5.23.

Reason: beside a request that samples, a greedy one is drawn from sorted probabilities, which breaks ties otherwise than
``argmax`` of its logits, and its log-probabilities are ``log(softmax)``, not ``log_softmax``: a neighbour changes its
answer. Which of equal tokens the top log-probabilities name depends on the most that anybody in the batch asks for.
Here a greedy row takes what it takes alone, and of equals the lowest id ranks first.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from leankv_patches import hook

_SAMPLER = "sglang.srt.layers.sampler.Sampler"
_LOGPROBS = "sglang.srt.layers.logprob_processor"
FORWARD, PREPROCESS, SAMPLE = (f"{_SAMPLER}.{name}" for name in ("forward", "_preprocess_logits", "_sample_from_probs"))
COMPUTE = f"{_LOGPROBS}.OutputLogprobProcessor.compute_logprobs"
RANK, RANK_CHUNK = (f"{_LOGPROBS}.get_top_logprobs_{name}" for name in ("raw", "chunk"))
TARGETS: dict[str, list[str] | None] = {
    FORWARD: [
        *("self", "logits_output", "sampling_info", "return_logprob", "top_logprobs_nums", "token_ids_logprobs"),
        *("positions", "logprob_logits"),
    ],
    PREPROCESS: ["self", "logits", "sampling_info"],
    SAMPLE: ["self", "probs", "sampling_info", "positions", "simple_sampling_case"],
    COMPUTE: ["self", "logprobs", "top_logprobs_nums", "token_ids_logprobs", "batch_next_token_ids"],
    RANK: None,
    RANK_CHUNK: None,
}
"""What is hooked, with its arguments where they matter."""


class _Greedy(NamedTuple):
    rows: Tensor  # bool [rows]
    tokens: Tensor  # int64 [rows], of every row
    logprobs: Tensor | None  # [rows, tokens], of every row


def begin(
    sampler: Any,
    logits_output: Any,
    sampling_info: Any,
    return_logprob: bool,
    *_: Any,
    logprob_logits: Any = None,
    **__: Any,
) -> None:
    """Before a batch is sampled: whether some of its rows are greedy and others not."""
    # On-policy training wants the trainer's arithmetic, whatever is sampled.
    info = sampling_info
    mixed = info.is_any_greedy and not info.is_all_greedy and sampler.rl_on_policy_target is None
    processor = sampler.output_logprob_processor
    processor.leankv_wants = (mixed, mixed and return_logprob and logprob_logits is None)
    processor.leankv_greedy = None


def note(preprocessed: Tensor, sampler: Any, logits: Tensor, sampling_info: Any) -> Tensor:
    """When logits are final: what each row would be, if it is greedy."""
    processor = sampler.output_logprob_processor
    mixed, logprobs = getattr(processor, "leankv_wants", (False, False))
    if mixed and processor.leankv_greedy is None:
        found = torch.nn.functional.log_softmax(preprocessed, dim=-1) if logprobs else None
        processor.leankv_greedy = _Greedy(sampling_info.top_ks <= 1, preprocessed.argmax(-1), found)
    return preprocessed


def choose(result: tuple[Tensor, Any], sampler: Any, *_: Any, **__: Any) -> tuple[Tensor, Any]:
    """After tokens are drawn: greedy rows take theirs."""
    processor = sampler.output_logprob_processor
    greedy: _Greedy | None = getattr(processor, "leankv_greedy", None)
    processor.leankv_wants = (False, False)
    if greedy is None:
        return result
    drawn, capture = result
    if capture is not None:
        # It was of the token that was drawn; without, SGLang looks it up.
        capture = capture._replace(selected_weight=None)
    return torch.where(greedy.rows, greedy.tokens.to(drawn.dtype), drawn), capture


def with_own_logprobs(
    processor: Any, logprobs: Tensor, *rest: Any, **named: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before log-probabilities are told: greedy rows have those of their logits."""
    greedy: _Greedy | None = getattr(processor, "leankv_greedy", None)
    processor.leankv_greedy = None
    if greedy is not None and greedy.logprobs is not None:
        logprobs = torch.where(greedy.rows[:, None], greedy.logprobs.to(logprobs.dtype), logprobs)
    return (processor, logprobs, *rest), named


class Ranked:
    """Of log-probabilities ``[rows, tokens]`` what the ranking functions use, with ties broken by the lower id."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def topk(self, k: int, dim: int = -1) -> tuple[Tensor, Tensor]:
        """The ``k`` highest of each row, and their ids, as ``torch.topk`` but the same for any ``k`` up to it."""
        assert dim in (1, -1)
        # Bits of a float order as it does, once those of a negative one are turned; 0 and -0 are equal.
        bits = (self.values.float() + 0.0).view(torch.int32)
        bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
        ids = torch.arange(bits.shape[-1], device=bits.device)
        indices = (bits * 2**32 - ids).topk(k, dim=-1).indices
        return self.values.gather(-1, indices), indices


def ranked(logprobs: Tensor, *rest: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before log-probabilities are ranked."""
    return (Ranked(logprobs), *rest), named


def install() -> None:
    """Register the hooks. Call while sglang loads its plugins, after those of ``seeded_sampling``."""
    hook.register(FORWARD, begin, "BEFORE")
    hook.register(PREPROCESS, note, "AFTER")
    hook.register(SAMPLE, choose, "AFTER")
    hook.register(COMPUTE, with_own_logprobs, "BEFORE")
    for target in (RANK, RANK_CHUNK):
        hook.register(target, ranked, "BEFORE")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "greedy rows beside others")
