"""Targets: ``BatchedPenalizerOrchestrator.__init__``, ``SamplingBatchInfo.copy_for_forward`` and
``_apply_pre_grammar_logits_transforms``, ``ModelRunner.sample`` of sglang 0.5.23.

Reason: SGLang adds up penalties from step to step, by what the host knows then. With overlap that is a token late and
begins with the prompt's last one; when a stranger joins one token is left out; a retracted request begins anew, and so
does its ``min_new_tokens``. Here penalties are taken afresh in every step from the request's own output: what the host
knows of it, and the token in flight, which the step has as its input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from leankv_patches import hook

_INFO = "sglang.srt.sampling.sampling_batch_info.SamplingBatchInfo"
MAKE = "sglang.srt.sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator.__init__"
COPY, APPLY = f"{_INFO}.copy_for_forward", f"{_INFO}._apply_pre_grammar_logits_transforms"
SAMPLE = "sglang.srt.model_executor.model_runner.ModelRunner.sample"
TARGETS = {
    MAKE: ["self", "vocab_size", "batch", "penalizers"],
    COPY: ["self"],
    APPLY: ["self", "logits"],
    SAMPLE: ["self", "logits_output", "forward_batch"],
}
"""What is hooked, with its arguments."""


class Penalties(NamedTuple):
    """Of the rows of a batch that have any, on the device."""

    rows: Tensor
    """int64 ``[rows]``: which of the batch."""
    outputs: Tensor
    """int64 ``[2, tokens]``: row of ours and token, for all output that the host knows."""
    stops: Tensor
    """int64 ``[2, tokens]``: row of ours and token that may not come yet."""
    strengths: Tensor
    """float32 ``[4, rows]``: frequency, presence, repetition, and 1 where a token is in flight."""


def add_up_nothing(*args: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before SGLang prepares its own: it has none."""
    return args, {**named, "penalizers": set()}


def penalties_of(batch: Any, vocab_size: int, device: torch.device | str) -> Penalties | None:
    """What the next token of every request of a batch is penalized for; None where nobody asks.

    Args:
        batch: a ``ScheduleBatch`` about to be run.
        vocab_size: tokens of the model; others are passed over.
        device: of the result.
    """
    rows, strengths, outputs, stops = [], [], [], []
    for row, (req, length) in enumerate(zip(batch.reqs, batch.seq_lens_cpu.tolist(), strict=True)):
        asked = req.sampling_params
        strength = (asked.frequency_penalty, asked.presence_penalty, asked.repetition_penalty)
        made = max(0, length - len(req.origin_input_ids))
        early = made < asked.min_new_tokens
        if strength == (0.0, 0.0, 1.0) and not early:
            continue
        known = np.array(req.output_ids[:made], dtype=np.int64)
        outputs.append(known)
        stops.append(np.array(list(_stops(req, vocab_size)) if early else [], dtype=np.int64))
        strengths.append((*strength, float(made > len(known))))
        rows.append(row)
    if not rows:
        return None

    def pairs(lists: list[Any]) -> Tensor:
        owners = np.repeat(np.arange(len(lists)), [len(tokens) for tokens in lists])
        return put(np.stack([owners, np.concatenate(lists)]))

    def put(numbers: Any) -> Tensor:
        here = torch.from_numpy(numbers)
        here = here.pin_memory() if torch.device(device).type == "cuda" else here
        return here.to(device, non_blocking=True)

    return Penalties(
        put(np.array(rows)), pairs(outputs), pairs(stops), put(np.array(strengths, dtype=np.float32).T.copy())
    )


def _stops(req: Any, vocab_size: int) -> Iterator[int]:
    """Tokens that end a request's answer."""
    found = set(req.sampling_params.stop_token_ids or ()) | set(req.eos_token_ids or ())
    if req.tokenizer is not None:
        found |= set(getattr(req.tokenizer, "additional_stop_token_ids", None) or ()) | {req.tokenizer.eos_token_id}
    return (token for token in found if token is not None and 0 <= token < vocab_size)


def apply(logits: Tensor, penalties: Penalties, inputs: Tensor | None) -> None:
    """Change the logits of rows that have penalties, in place; every operation is of one row alone.

    Args:
        logits: ``[batch, tokens]``.
        penalties: of the batch.
        inputs: int64 ``[batch]``, each row's last input token; None where no token can be in flight.
    """
    rows, (frequency, presence, repetition, in_flight) = penalties.rows, penalties.strengths[:, :, None]
    theirs = logits[rows].float()
    counts = torch.zeros_like(theirs)
    counts.index_put_(tuple(penalties.outputs), counts.new_ones(()), accumulate=True)
    if inputs is not None:
        counts.scatter_add_(1, inputs[rows].long()[:, None], in_flight)
    there = counts > 0
    theirs -= frequency * counts + presence * there
    theirs = torch.where(there, torch.where(theirs < 0, theirs * repetition, theirs / repetition), theirs)
    theirs.index_put_(tuple(penalties.stops), theirs.new_tensor(float("-inf")))
    logits[rows] = theirs.to(logits.dtype)


def note_penalties(copy: Any, info: Any) -> Any:
    """When a batch is about to run: take its penalties along."""
    batch = info.penalizer_orchestrator.batch
    copy.leankv_penalties = penalties_of(batch, info.vocab_size, info.device) if batch is not None else None
    return copy


def note_inputs(_runner: Any, logits_output: Any, forward_batch: Any) -> None:
    """Before logits are changed: each row's last input token."""
    info = forward_batch.sampling_info
    if getattr(info, "leankv_penalties", None) is None:
        return
    inputs = forward_batch.input_ids
    if not forward_batch.forward_mode.is_decode():
        inputs = inputs[forward_batch.extend_seq_lens.cumsum(0) - 1]
    info.leankv_inputs = inputs


def penalize(result: None, info: Any, logits: Tensor) -> None:
    """When logits are about to be masked by grammars."""
    penalties = getattr(info, "leankv_penalties", None)
    if penalties is not None:
        apply(logits, penalties, getattr(info, "leankv_inputs", None))
    return result


def install() -> None:
    """Register the hooks. Call while sglang loads its plugins."""
    hook.register(MAKE, add_up_nothing, "BEFORE")
    hook.register(COPY, note_penalties, "AFTER")
    hook.register(SAMPLE, note_inputs, "BEFORE")
    hook.register(APPLY, penalize, "AFTER")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "penalties of a request's own output")
