"""A seed decides a sampled answer, alone and in any company; the same under ``--enable-deterministic-inference``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench.common.server import Completion, Server
from tests.e2e.conftest import POOL_TOKENS
from tests.e2e.forked import Zygote
from tests.e2e.hits import PAGE, assert_same
from tests.e2e.prompts import tiny_passages

NEW = 16
Ask = Callable[[], Completion]
SERVERS = ("plain", "deterministic")


@pytest.fixture(scope="module")
def deterministic(tiny: Path, zygote: Zygote) -> Iterator[Server]:
    """The server ``plain`` with the flag."""
    flags = ("--chunked-prefill-size", "128", "--leankv-profile", "none", "--enable-deterministic-inference")
    with zygote.serve("--model-path", str(tiny), "--max-total-tokens", str(POOL_TOKENS), *flags) as running:
        yield running


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Server:
    """The one that a test's parameter names, on an empty cache."""
    running: Server = request.getfixturevalue(request.param)
    running.flush()
    return running


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    """Two full pages and a bit; the answer ends in the third."""
    return tiny_passages(1, 2 * PAGE + 20, 2 * PAGE + 20, seed=21)[0]


def company(server: Server, count: int = 6) -> list[Ask]:
    """What others ask for, each in its own way."""
    others = tiny_passages(count, 140, 300, seed=22)
    ways: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 0.8, "min_p": 0.1},
        {"temperature": 1.0, "top_k": 9, "sampling_seed": 5},
        {"temperature": 1.2, "sampling_seed": 6},
        {"temperature": 1.0},
    ]
    return [
        lambda ids=ids, way=way: server.generate(ids, 2 * NEW, **way) for ids, way in zip(others, ways, strict=True)
    ]


def together(asks: list[Ask]) -> list[Completion]:
    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(lambda ask: ask(), asks))


@pytest.mark.parametrize("server", SERVERS, indirect=True)
@pytest.mark.parametrize("filters", [{}, {"top_p": 0.9, "top_k": 60}, {"min_p": 0.02}], ids=str)
def test_the_same_seed_gives_the_same_answer(server: Server, prompt: list[int], filters: dict[str, Any]) -> None:
    """To the bit: as a miss, as a hit, and among others, whose own filters and seeds change nothing."""

    def ask(seed: int) -> Completion:
        return server.generate(prompt, NEW, temperature=1.0, sampling_seed=seed, **filters)

    miss, hit, other = ask(5), ask(5), ask(-6)
    assert (miss.cached, hit.cached) == (0, 2 * PAGE)
    assert_same(hit, miss)
    assert other.tokens != miss.tokens
    five, six, *_ = together([lambda: ask(5), lambda: ask(-6), *company(server)])
    assert_same(five, miss)
    assert_same(six, other)


@pytest.mark.parametrize("server", SERVERS, indirect=True)
def test_choices_have_the_seeds_that_follow(server: Server) -> None:
    """Through OpenAI's protocol: several choices differ, and the first is what one choice would be."""
    body = {"model": "default", "prompt": "The capital of France is", "max_tokens": NEW, "temperature": 1.0}

    def texts(**fields: Any) -> list[str]:
        return [one["text"] for one in server.post("/v1/completions", body=body | fields)["choices"]]

    three = texts(seed=7, n=3)
    assert len(set(three)) == 3
    assert [texts(seed=seed)[0] for seed in (7, 8, 9)] == three


@pytest.mark.parametrize("server", ["plain"], indirect=True)
def test_without_a_seed_answers_vary(server: Server, prompt: list[int]) -> None:
    """Beside requests that have one, too."""

    def ask() -> Completion:
        return server.generate(prompt, NEW, temperature=1.0)

    answers = [ask(), ask(), *together([ask, ask, *company(server)])[:2]]
    assert len({tuple(answer.tokens) for answer in answers}) == 4


@pytest.mark.parametrize("server", ["deterministic"], indirect=True)
def test_under_the_flag_no_seed_is_a_seed(server: Server, prompt: list[int]) -> None:
    """And a greedy answer beside sampled ones is the answer alone, log-probabilities included."""
    sampled = server.generate(prompt, NEW, temperature=1.0)
    greedy = server.generate(prompt, NEW)
    assert greedy.cached == 2 * PAGE
    ways: list[Ask] = [
        lambda: server.generate(prompt, NEW, temperature=1.0),
        lambda: server.generate(prompt, NEW),
    ]
    again, greedy_again, *_ = together([*ways, *company(server)])
    assert_same(again, sampled)
    assert_same(greedy_again, greedy)
