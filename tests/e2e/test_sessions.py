"""Streaming sessions on real servers: each turn answers as its whole conversation would on an empty cache."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from bench.common.server import Server
from bench.stress import ENV
from tests.e2e.conversations import Conversation, assert_turns_equal_misses
from tests.e2e.forked import Zygote
from tests.e2e.prompts import tiny_passages
from tests.models_served import MODELS

FLAGS = ("--enable-streaming-session", "--leankv-profile", "none", "--chunked-prefill-size", "256")
ANSWERS = (40, 100, 28, 130, 1, 64)
"""Tokens of a conversation's answers; turns end inside pages and at their ends."""


@pytest.fixture(scope="module")
def server(tiny: Path, zygote: Zygote) -> Iterator[Server]:
    with zygote.serve("--model-path", str(tiny), "--max-total-tokens", "4096", *FLAGS, env=ENV) as running:
        yield running


def test_turns_equal_misses(server: Server) -> None:
    talk = Conversation(server)
    for passage, new_tokens in zip(tiny_passages(len(ANSWERS), 5, 400, seed=1), ANSWERS, strict=True):
        before = len(talk.history)
        answer = talk.say(passage, new_tokens)
        # But for the last token that was drawn, which no forward has seen yet.
        assert before - 1 <= answer.cached <= before
    talk.close()
    assert_turns_equal_misses(server, [talk])


def test_what_a_session_holds_stands_the_checks_at_idle(server: Server) -> None:
    talk = Conversation(server)
    talk.say(tiny_passages(1, 200, 200, seed=2)[0], 100)
    time.sleep(2)
    assert server.info()["leankv"]["units_free"] < 4096
    talk.say([7, 8, 9], 20)
    talk.close()
    assert_turns_equal_misses(server, [talk])
    assert "leak" not in server.log_text()


def test_a_turn_that_was_aborted_leaves_the_conversation_as_it_was(server: Server) -> None:
    talk = Conversation(server)
    first, second = tiny_passages(2, 150, 150, seed=3)
    talk.say(first, 30)
    body = {
        "input_ids": second,
        "rid": "gone",
        "session_params": {"id": talk.id},
        "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True},
    }
    with ThreadPoolExecutor(1) as other:
        asked = other.submit(requests.post, server.url + "/generate", json=body, timeout=120)
        time.sleep(0.5)
        requests.post(server.url + "/abort_request", json={"rid": "gone"}, timeout=60).raise_for_status()
        asked.result()
    talk.say(second, 30)
    talk.close()
    assert_turns_equal_misses(server, [talk])


def test_a_turn_may_have_another_accuracy(server: Server) -> None:
    talk = Conversation(server)
    first, second = tiny_passages(2, 300, 300, seed=4)
    talk.say(first, 30)
    answer = talk.say(second, 200, leankv={"alpha_high": 0.1})
    assert answer.kv["alpha_high"] == 0.1
    talk.close()


def converse(server: Server, seed: int) -> Conversation:
    draw, talk = random.Random(seed), Conversation(server)
    for passage in tiny_passages(3, 10, 100, seed=seed):
        talk.say(passage, draw.randint(60, 130))
    talk.close()
    return talk


def _several_at_once(server: Server, seeds: range) -> None:
    with ThreadPoolExecutor(len(seeds)) as clients:
        conversations = list(clients.map(lambda seed: converse(server, seed), seeds))
    assert_turns_equal_misses(server, conversations)


@pytest.mark.slow
@pytest.mark.parametrize("windows", [False, True])
def test_turns_that_are_retracted(windows: bool, tiny: Path, zygote: Zygote, tmp_path: Path) -> None:
    """Every third step, some inside of a page; a model with windows begins those from the first prompt again."""
    model = MODELS["gemma2"].build(tmp_path).served if windows else tiny
    room = ("--max-total-tokens", "4096", "--swa-full-tokens-ratio", "0.9", "--enable-mixed-chunk")
    often = {**ENV, "SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "3"}
    with zygote.serve("--model-path", str(model), *room, *FLAGS, env=often) as server:
        _several_at_once(server, range(3))
        assert "#retracted_reqs: 1" in server.log_text()
