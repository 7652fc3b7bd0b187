"""One request that goes wrong in the scheduler ends alone: on its way in, and when its stop_regex is searched."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.schedule_batch import FINISH_ABORT

from leankv_patches import prompt_room, request_failure, stop_regex


def _scheduler(**given: Any) -> SimpleNamespace:
    sent: list[Any] = []
    stated = {"waiting_queue": [], "grammar_manager": SimpleNamespace(grammar_queue=[])}
    return SimpleNamespace(**{**stated, **given}, sent=sent, send_abort_output=lambda *what: sent.append(what))


def test_a_request_that_cannot_be_taken_in_ends_alone() -> None:
    other = SimpleNamespace(rid="b")
    scheduler, request = _scheduler(waiting_queue=[other]), SimpleNamespace(rid="a", mm_inputs=None)

    def queue_and_fail(scheduler: Any, request: Any) -> None:
        scheduler.waiting_queue.append(request)
        scheduler.grammar_manager.grammar_queue.append(request)
        raise IndexError("secret")

    assert request_failure.take_in(queue_and_fail, scheduler, request) is None
    assert (scheduler.waiting_queue, scheduler.grammar_manager.grammar_queue) == ([other], [])
    ((answer, route),) = scheduler.sent
    assert (answer.rid, route) == ("a", request)
    assert answer.finished_reason["status_code"] == 500
    assert answer.finished_reason["message"] == "The server could not take this request in: IndexError."


def test_requests_are_taken_in_as_they_come() -> None:
    scheduler = _scheduler()
    taken = request_failure.take_in(lambda *what, **named: (what, named), scheduler, "request", mm_input_error="x")
    assert taken == ((scheduler, "request"), {"mm_input_error": "x"})


@pytest.mark.parametrize("pattern", [r"b+c?", r"^a", r"(?i)B", r"[^x]\Z", r"z", r"(a|b)\1"])
def test_patterns_are_searched_as_before(pattern: str) -> None:
    for text in ("aab", "", "abb\n", "xyz"):
        found, expected = stop_regex.BoundedRe().search(pattern, text), re.search(pattern, text)
        assert (found and found.span()) == (expected and expected.span())


def test_a_search_without_end_ends_its_request() -> None:
    def search(req: Any, _new: int) -> bool:
        return bool(stop_regex.BoundedRe.search(r"((.|.)+)+[\x00\x01]", "ab" * 30))

    req, start = SimpleNamespace(rid="a", finished_reason=None), time.monotonic()
    assert stop_regex.check(search, req, 1) is True
    assert time.monotonic() - start < 30 * stop_regex.LONGEST_SECONDS
    assert isinstance(req.finished_reason, FINISH_ABORT)
    assert req.finished_reason.message == "stop_regex cannot be searched: searching takes longer than 1 s."
    assert req.finished_reason.status_code == 400
    with pytest.raises(re.error):
        stop_regex.BoundedRe.search("(", "a")


PAGE, POOL, CONTEXT = 128, 1024, 8192


def _answered(prompt: int, asked: int | None, context: int = CONTEXT) -> tuple[int, str | None]:
    """What is left of an answer, and why it is refused."""
    req = SimpleNamespace(
        origin_input_ids=[0] * prompt, to_finish=None, sampling_params=SimpleNamespace(max_new_tokens=asked)
    )
    req.set_finish_with_abort = lambda sentence: setattr(req, "to_finish", sentence)
    scheduler = _scheduler(
        max_total_num_tokens=POOL, page_size=PAGE, max_req_len=context, max_req_input_len=context - 5
    )

    def stock(scheduler: Any, req: Any) -> None:
        room = min(
            scheduler.max_total_num_tokens - -(-prompt // PAGE) * PAGE - PAGE - 1, scheduler.max_req_len - prompt - 1
        )
        req.sampling_params.max_new_tokens = max(0, min(1 << 30 if asked is None else asked, room))

    prompt_room.limit_answer(stock, scheduler, req)
    return req.sampling_params.max_new_tokens, req.to_finish


@pytest.fixture
def truncates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cuts prompts off, or does not: here it does not."""
    import sglang.srt.runtime_context as context

    monkeypatch.setattr(context, "get_serving", lambda: SimpleNamespace(allow_auto_truncate=False))


def test_a_prompt_is_answered_or_refused_but_never_with_nothing(truncates: None) -> None:
    longest = POOL - 2 * PAGE
    for prompt in range(longest - 3, longest + 1):
        assert _answered(prompt, 50) == (50, None)
        assert _answered(prompt, None)[1] is None
    for prompt in range(longest + 1, POOL):
        left, said = _answered(prompt, 50)
        assert left == 0
        assert said == (
            f"The prompt has {prompt} tokens, which leaves no room for an answer: "
            f"with this server's memory and this model a prompt may have {longest}."
        )
    # Who asks for nothing gets it.
    assert _answered(longest + 1, 0) == (0, None)


def test_the_models_length_counts_as_well(truncates: None) -> None:
    assert "may have 58." in str(_answered(300, 5, context=64)[1])
