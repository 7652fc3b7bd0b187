"""Penalties are those of a request's own output, whatever happened to its batch."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.plugins.hook_registry import HookRegistry
from sglang.srt.sampling.penaltylib.orchestrator import BatchedPenalizerOrchestrator
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from leankv_patches import output_penalties
from leankv_patches.output_penalties import apply, note_inputs, penalties_of

VOCAB, EOS = 12, 11


def request(prompt: int, output: list[int], *, minimum: int = 0, stops: Any = None, **asked: float) -> Any:
    """What the patch reads of a request with this output so far."""
    params = SimpleNamespace(
        frequency_penalty=asked.get("frequency", 0.0),
        presence_penalty=asked.get("presence", 0.0),
        repetition_penalty=asked.get("repetition", 1.0),
        min_new_tokens=minimum,
        stop_token_ids=stops,
    )
    tokenizer = SimpleNamespace(eos_token_id=EOS, additional_stop_token_ids=None)
    return SimpleNamespace(
        sampling_params=params, origin_input_ids=array("q", [0] * prompt), output_ids=array("q", output),
        eos_token_ids=None, tokenizer=tokenizer,
    )  # fmt: skip


class Batch:
    """Of requests, of whose output so many tokens are input by now."""

    device = "cpu"

    def __init__(self, reqs: list[Any], made: list[int]) -> None:
        self.reqs = reqs
        lengths = [len(req.origin_input_ids) + n for req, n in zip(reqs, made, strict=True)]
        self.seq_lens_cpu = torch.tensor(lengths)


def penalized(reqs: list[Any], made: list[int], inputs: list[int], logits: torch.Tensor) -> torch.Tensor:
    found, logits = penalties_of(Batch(reqs, made), VOCAB, "cpu"), logits.clone()
    if found is not None:
        apply(logits, found, torch.tensor(inputs))
    return logits


def expected(output: list[int], logits: torch.Tensor, frequency: float, presence: float, repetition: float) -> Any:
    """By the definition of the OpenAI API, and of Keskar et al. (2019) for repetition."""
    result = logits.clone()
    for token in set(output):
        x = logits[token] - (frequency * output.count(token) + presence)
        result[token] = x * repetition if x < 0 else x / repetition
    return result


outputs = st.lists(st.integers(0, VOCAB - 1), max_size=9)
halves = st.sampled_from([0.0, 0.5, -1.5, 2.0])


@given(st.lists(st.tuples(outputs, halves, halves, st.sampled_from([1.0, 0.5, 2.0]), st.booleans()), min_size=1))
def test_every_row_is_penalized_for_its_own_output(rows: list[Any]) -> None:
    """In any company, whether the host knows the last token yet or not."""
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(len(rows)))
    reqs, made, inputs = [], [], []
    for output, frequency, presence, repetition, behind in rows:
        known = output[:-1] if behind else output
        reqs.append(request(4, known, frequency=frequency, presence=presence, repetition=repetition))
        made.append(len(output))
        inputs.append(output[-1] if output else 3)
    found = penalized(reqs, made, inputs, logits)
    for i, (output, *asked, _) in enumerate(rows):
        assert torch.allclose(found[i], expected(output, logits[i], *asked))
        assert torch.equal(found[i], penalized([reqs[i]], [made[i]], [inputs[i]], logits[i : i + 1])[0])


def test_the_end_may_not_come_before_its_time() -> None:
    """Also after a retraction, when the output is prefilled; stop tokens that no model has are passed over."""
    logits = torch.zeros(3, VOCAB)
    reqs = [request(2, [1] * n, minimum=4, stops={5, VOCAB, -1}) for n in (0, 3, 4)]
    found = penalized(reqs, [0, 3, 4], [1, 1, 1], logits)
    ended = [[5, EOS], [5, EOS], []]
    assert [row.isinf().nonzero().flatten().tolist() for row in found] == ended


def test_a_prompts_chunk_and_a_batch_that_asks_nothing() -> None:
    assert penalties_of(Batch([request(5, [1])], [1]), VOCAB, "cpu") is None
    logits = torch.randn(1, VOCAB)
    assert torch.equal(penalized([request(5, [], presence=2.0)], [-3], [2], logits), logits)


@pytest.fixture
def hooks(own_registry: Callable[[Any], None]) -> None:
    own_registry(output_penalties.TARGETS)
    assert "could not be hooked" in (output_penalties.problem() or "")
    output_penalties.install()
    HookRegistry.apply_hooks()
    assert output_penalties.problem() is None


def test_through_sglangs_own_batch(hooks: None) -> None:
    """Its penalizers are not made, its copy for a forward carries ours, its logits are changed before the grammar."""
    reqs = [request(3, [7], presence=1.0), request(2, [])]
    running = Batch(reqs, [2, 1])
    orchestrator = BatchedPenalizerOrchestrator(vocab_size=VOCAB, batch=running, penalizers={object})
    assert not orchestrator.is_required
    zeros = torch.zeros(2)
    info = SamplingBatchInfo(
        zeros.view(-1, 1), zeros, zeros, zeros, True, True, False, False, False, VOCAB,
        penalizer_orchestrator=orchestrator, device="cpu",
    )  # fmt: skip
    copy = info.copy_for_forward()
    decode = SimpleNamespace(sampling_info=copy, input_ids=torch.tensor([4, 9]), forward_mode=ForwardMode.DECODE)
    note_inputs(None, None, decode)
    logits = torch.zeros(2, VOCAB)
    copy.apply_logits_bias(logits)
    assert logits[0].nonzero().flatten().tolist() == [4, 7]
    assert not logits[1].any()
    # Mixed with a prompt, each row's last input is its own.
    mixed = SimpleNamespace(
        sampling_info=copy, input_ids=torch.tensor([1, 2, 5, 4]), forward_mode=ForwardMode.MIXED,
        extend_seq_lens=torch.tensor([3, 1]),
    )  # fmt: skip
    note_inputs(None, None, mixed)
    assert copy.leankv_inputs.tolist() == [5, 4]
