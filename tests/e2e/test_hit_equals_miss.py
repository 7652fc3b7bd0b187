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

QUESTIONS = ["The fox is red, the wolf is grey. " * 8 + "What is a fox?", "And a wolf?", "Which is larger?"]
"""With its answer the first fills a page."""
POINTS = ("near-lossless", "balanced", "small")


def test_alone_and_going_on_from_what_decoding_wrote(server: Server) -> None:
    """Two pages, the second of which is committed while decoding; continuing from it equals computing it afresh."""
    prompt = passages(1, 250, 250, seed=5)[0]
    miss = a_miss_equal_to_its_hit(server, prompt, 10)
    longer = prompt + miss.tokens
    hit = server.generate(longer, 4)
    server.flush()
    assert hit.cached == 256
    assert_same(hit, server.generate(longer, 4))


def test_at_every_point_of_the_shipped_profile(server: Server) -> None:
    """Points are also told back, and prune the more the smaller they are; absent means near-lossless."""
    prompt = passages(1, 272, 272, seed=5)[0]
    pruned = []
    for name, asked in zip(POINTS, (None, *POINTS[1:]), strict=True):
        field = {"profile": asked} if asked else None
        miss = a_miss_equal_to_its_hit(server, prompt, 4, field, again={"profile": name})
        assert miss.kv["profile"] == name
        pruned.append(server.info()["leankv"]["share_pruned"])
    assert 0 < pruned[0] < pruned[1] < pruned[2]
    assert "predictor" in server.info()["leankv"]["config"]


def test_in_a_batch(server: Server) -> None:
    """Prompts that come together get what each gets alone, as misses and as hits."""
    prompts = passages(2, 132, 150, seed=6)
    alone = misses(server, prompts, 5)
    server.flush()
    for least in (0, 128):
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda prompt: server.generate(prompt, 5), prompts))
        for answer, miss in zip(answers, alone, strict=True):
            assert answer.cached >= least
            assert_same(answer, miss)


def test_chat_of_three_turns(server: Server) -> None:
    result = chat_turns(server, QUESTIONS, 16)
    assert result.equal == result.count == 3
    assert result.cached == 2 * 128
