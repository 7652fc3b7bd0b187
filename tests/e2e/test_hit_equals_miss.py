"""Through the server: a cache hit gives what a miss gives, bit for bit when the request runs alone."""

from __future__ import annotations

import pytest
import requests

from bench.common.server import Server, serve
from bench.hit_miss import PRUNED, chat_turns
from tests.e2e.prompts import passages

QUESTIONS = ["Who are you?", "What is a fox?", "And a wolf?", "Which is larger?", "Name a third.", "Thank you."]


def _assert_hits_equal_misses(server: Server, prompts: list[list[int]], new_tokens: int) -> None:
    for prompt in prompts:
        server.flush()
        miss = server.generate(prompt, new_tokens)
        hit = server.generate(prompt, new_tokens)
        assert miss.cached == 0
        assert hit.cached >= len(prompt) // 128 * 128 - 128
        assert hit.tokens == miss.tokens
        assert hit.logprobs == miss.logprobs


def test_alone(server: Server) -> None:
    # 40 new tokens carry the last prompt over a page boundary, so a page is committed while decoding.
    _assert_hits_equal_misses(server, [*passages(2, 300, 700), passages(1, 620, 620, seed=5)[0]], 40)


def test_output_tokens_are_reused(server: Server) -> None:
    """What decoding wrote is inserted into the tree; continuing from it equals computing it afresh."""
    prompt = passages(1, 300, 300, seed=1)[0]
    server.flush()
    first = server.generate(prompt, 150)
    longer = prompt + first.tokens
    hit = server.generate(longer, 16)
    server.flush()
    miss = server.generate(longer, 16)
    assert hit.cached == 384
    assert (hit.tokens, hit.logprobs) == (miss.tokens, miss.logprobs)


def test_chat_of_six_turns(server: Server) -> None:
    result = chat_turns(server, QUESTIONS, 40)
    assert result.equal == result.count == 6
    assert result.cached > 0


@pytest.mark.parametrize(("chunk", "workers"), [("128", "1"), ("512", "2")])
def test_small_chunks_and_pruning(chunk: str, workers: str) -> None:
    """Pages are committed chunk by chunk, tokens are pruned, and nothing changes.

    Tokenizer workers are processes of their own, which import the HTTP app again.
    """
    prompts = passages(1, 600, 600, seed=3)
    flags = ("--chunked-prefill-size", chunk, "--max-total-tokens", "8192", "--tokenizer-worker-num", workers)
    with serve(*flags, *PRUNED) as server:
        _assert_hits_equal_misses(server, prompts, 16)
        assert server.info()["leankv"]["share_pruned"] > 0.02
        for _ in range(2 * int(workers)):
            answer = server.generate(prompts[0], 1, fields={"leankv": {"profile": "lossless"}})
            assert answer.kv["profile"] == "lossless"
            with pytest.raises(requests.HTTPError, match="400"):
                server.generate("x", 1, fields={"leankv": {"profile": "tiny"}})
        assert answer.cached == 512
