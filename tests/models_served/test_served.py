"""Seven architectures on real servers: answers depend on their own tokens alone, as near to the truth as bfloat16 is.

All of them are in ``python -m bench.architectures``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from bench.architectures.asks import LENGTHS, Answer, Findings
from bench.architectures.systems import Fleet, reason
from bench.architectures.truth import Truth, mean_gap
from tests.e2e.forked import Zygote
from tests.models_served import MODELS, Folders

NAMES = ("llama-head80", "llama-mqa", "qwen3", "gemma", "gpt-neox", "mixtral", "mimo-v2")
ALLOWED = 1.5
"""Of one model; the bench holds the average of all to less."""
FAR_MATTERS = 0.1
"""How much what is said must change with what is far before, for errors there to be seen."""

Asked = tuple[Folders, "Future[Findings]"]


@pytest.fixture(scope="module")
def asked(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Asked]]:
    """Every model's folders, and what its server says, two at a time."""
    folder = tmp_path_factory.mktemp("models")
    fleet = Fleet(zygote, folder)
    with ThreadPoolExecutor(2) as pool:
        begun = {}
        for name in NAMES:
            folders = MODELS[name].build(folder / name)
            begun[name] = folders, pool.submit(fleet.find, "leankv", name, MODELS[name], folders.served)
        yield begun


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_answers_equal_their_misses_and_are_near_float32(name: str, asked: dict[str, Asked]) -> None:
    """A hit, a second turn and a batch give the bits of an empty cache; the error is that of bfloat16."""
    folders, job = asked[name]
    found = job.result(timeout=120)
    assert found.lost is None
    assert found.hit_share == 1
    assert found.hit_equals_miss
    assert found.second_turn_equal
    assert found.batch_equal
    assert [len(one.prompt) for one in found.misses] == list(LENGTHS)

    exact, rounded = (Truth(MODELS[name], folders.truth, dtype) for dtype in (torch.float32, torch.bfloat16))
    sequences = [one.sequence for one in found.misses]
    true = [exact.logprobs(one) for one in sequences]
    allowed = ALLOWED * mean_gap([rounded.logprobs(one) for one in sequences], true)
    for last in (0, len(found.misses[0].tokens)):
        assert mean_gap([one.whole for one in found.misses], true, last) <= allowed
    assert exact.context(sequences[LENGTHS.index(300)]) > FAR_MATTERS


def test_what_differs_in_one_number_is_not_the_same() -> None:
    """The comparison sees every number there is, and takes none that is not one."""
    answer = Answer([1, 2, 3], [None, -1.0, -2.0], [4], [-3.0], [[[-3.0, 4]]], 0)
    assert answer.same(replace(answer, cached=2, inputs=[None, -2.0]))
    for change in (
        {"tokens": [5]},
        {"logprobs": [-3.0000001]},
        {"tops": [[[-3.0, 5]]]},
        {"inputs": [None, -1.0, -2.0000001]},
        {"inputs": [None, -2.0000001]},
    ):
        assert not answer.same(replace(answer, **change))
    lost = replace(answer, logprobs=[None])
    assert not lost.same(lost)
    assert math.isnan(mean_gap([lost.whole], [[-1.0, -2.0, -3.0]]))


def test_the_reason_is_the_sentence_or_the_error() -> None:
    """LeanKV's own sentence wins over what SGLang raises."""
    raised = "[2026] Scheduler hit an exception: Traceback\n  File x\nValueError: no such window\nSystemExit: 1\n"
    assert reason(raised) == "ValueError: no such window"
    assert reason(raised + "error: LeanKV cannot serve this model: why.\n") == "LeanKV cannot serve this model: why."
    assert reason("all is well\n") is None
