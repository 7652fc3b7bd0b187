"""Through the server on the real model: a cache hit gives what a miss gives, bit for bit.

The same is asked of other servers where they are tested: small chunks, two tokenizer workers and every kind of
accuracy in test_request_accuracy.py, pages trimmed and healed in test_capacity.py, retractions in test_pressure.py,
tensor-parallel ranks and replicas in test_ranks.py.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from bench.common.server import Server
from bench.hit_miss import chat_turns
from tests.e2e.hits import a_miss_equal_to_its_hit, assert_same, misses
from tests.e2e.prompts import passages

QUESTIONS = ["Who are you?", "What is a fox?", "And a wolf?", "Which is larger?", "Name a third.", "Thank you."]
POINTS = ("lossless", "balanced", "small")


def test_alone(server: Server) -> None:
    # 40 new tokens carry the last prompt over a page boundary, so a page is committed while decoding.
    for prompt in (passages(1, 300, 300)[0], passages(1, 620, 620, seed=5)[0]):
        a_miss_equal_to_its_hit(server, prompt, 40)


def test_at_every_point_of_the_shipped_profile(server: Server) -> None:
    """Points are also told back, and prune the more the smaller they are; absent means lossless."""
    prompt = passages(1, 560, 560, seed=5)[0]
    pruned = []
    for name, asked in zip(POINTS, (None, *POINTS[1:]), strict=True):
        field = {"profile": asked} if asked else None
        miss = a_miss_equal_to_its_hit(server, prompt, 16, field, again={"profile": name})
        assert miss.kv["profile"] == name
        pruned.append(server.info()["leankv"]["share_pruned"])
    assert 0 < pruned[0] < pruned[1] < pruned[2]
    assert "predictor" in server.info()["leankv"]["config"]


def test_in_a_batch(server: Server) -> None:
    """Prompts that come together get what each gets alone, as misses and as hits."""
    prompts = passages(3, 140, 280, seed=6)
    alone = misses(server, prompts, 12)
    server.flush()
    for least in (0, 128):
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda prompt: server.generate(prompt, 12), prompts))
        for answer, miss in zip(answers, alone, strict=True):
            assert answer.cached >= least
            assert_same(answer, miss)


def test_output_tokens_are_reused(server: Server) -> None:
    """What decoding wrote is inserted into the tree; continuing from it equals computing it afresh."""
    prompt = passages(1, 200, 200, seed=1)[0]
    server.flush()
    first = server.generate(prompt, 100)
    longer = prompt + first.tokens
    hit = server.generate(longer, 16)
    server.flush()
    miss = server.generate(longer, 16)
    assert hit.cached == 256
    assert_same(hit, miss)


def test_chat_of_six_turns(server: Server) -> None:
    result = chat_turns(server, QUESTIONS, 24)
    assert result.equal == result.count == 6
    assert result.cached > 0
