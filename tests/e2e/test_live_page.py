"""The live page and the probe on real servers: in a real browser, behind the API key, and beside what requests get."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi import FastAPI

from bench.common.server import Server, serve
from leankv_sglang.observability.live.page.routes import PATH, install_routes
from leankv_sglang.probe import main as probe_command
from tests.e2e.browser import browser
from tests.e2e.forked import Zygote

PICTURES = os.environ.get("LEANKV_PICTURES")
"""A folder for pictures of the page, which is then looked at over the real model (`make picture`)."""
WIDTHS = (1280, 390)
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def watched(tiny: Path, zygote: Zygote) -> Iterator[Server]:
    """A pool so small that pages are trimmed, demoted and evicted, on the tiny model."""
    flags = ("--max-total-tokens", "6144", "--leankv-demote", "--leankv-profile", "none")
    with zygote.serve("--model-path", str(tiny), *flags) as running:
        yield running


def drawn(source: random.Random, stems: list[list[int]]) -> list[int]:
    """A prompt that begins as others do, for a while."""
    stem = source.choice(stems)
    return stem[: source.randrange(1, len(stem))] + [source.randrange(5, 500) for _ in range(source.randrange(1, 300))]


def test_the_probe_tells_what_the_next_request_gets(watched: Server) -> None:
    source = random.Random(7)
    stems = [[source.randrange(5, 500) for _ in range(1400)] for _ in range(6)]
    met: dict[str, int] = {}
    for _ in range(200):
        prompt, fields = drawn(source, stems), {"leankv": {"profile": source.choice(["balanced", "small"])}}
        found = watched.post(f"{PATH}/probe", {"input_ids": prompt, **fields})
        got = watched.generate(prompt, 2, fields=fields)
        assert found["hit_tokens"] == got.cached
        assert found["prompt_tokens"] == got.prompt_tokens
        assert sum(found["hit_from"].values()) == found["hit_tokens"]
        assert found["to_compute"]["tokens"] == got.prompt_tokens - got.cached
        met[found["ends_because"]] = met.get(found["ends_because"], 0) + 1
    figures = watched.info()["leankv"]
    assert min(figures[f"pages_{what}"] for what in ("trimmed", "demoted", "evicted")) > 0
    assert {"not_cached", "trimmed", "demoted", "other_accuracy"} <= set(met), met


def test_the_probe_finds_what_another_salt_holds_and_uses_nothing(watched: Server) -> None:
    source = random.Random(8)
    prompt = [source.randrange(5, 500) for _ in range(400)]
    watched.generate(prompt, 2, fields={"cache_salt": "a"})
    before = watched.info()["leankv"]
    found = watched.post(f"{PATH}/probe", {"input_ids": prompt, "cache_salt": "b"})
    assert (found["hit_tokens"], found["ends_because"]) == (0, "other_salt")
    assert found["elsewhere"] == [{"same_salt": False, "accuracy": "balanced", "hit_tokens": 384}]
    assert watched.info()["leankv"] == before
    assert watched.post(f"{PATH}/probe", {"input_ids": prompt, "cache_salt": "a"})["ends_because"] == "whole_prompt"


def test_the_probe_reads_chats_as_the_chat_route_does(server: Server) -> None:
    messages = [{"role": "system", "content": "Be brief. " * 80}, {"role": "user", "content": "What is a radix tree?"}]
    answer = server.post("/v1/chat/completions", {"model": "m", "messages": messages, "max_tokens": 2})
    found = server.post(f"{PATH}/probe", {"messages": messages})
    assert found["prompt_tokens"] == answer["usage"]["prompt_tokens"]
    assert found["ends_because"] == "whole_prompt"
    assert found["hit_tokens"] == found["prompt_tokens"] // 128 * 128


def test_the_command_prints_the_answer(watched: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert probe_command(["some words", "--url", watched.url]) == 0
    assert "would be computed" in capsys.readouterr().out
    assert probe_command(["some words", "--url", watched.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hit_tokens"] == 0
    assert probe_command(["some words", "--url", watched.url, "--accuracy", "nonsense"]) == 2
    assert "leankv.profile takes" in capsys.readouterr().err
    assert probe_command(["some words", "--url", "http://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err.startswith("error: No server answers at")


def everything_shown(server: Server, marked: str, seconds: float) -> str:
    """What page, events and probe say, and what the server has printed."""
    said = requests.get(server.url + PATH, timeout=30).text
    end = time.monotonic() + seconds
    with requests.get(server.url + f"{PATH}/events", stream=True, timeout=30) as events:
        for line in events.iter_lines():
            said += line.decode()
            if time.monotonic() > end:
                break
    for body in ({"text": marked}, {"messages": [{"role": "user", "content": marked}]}, {"messages": marked}):
        said += requests.post(server.url + f"{PATH}/probe", json=body, timeout=30).text
    return said + server.log_text()


def test_nothing_of_a_prompt_is_shown(server: Server) -> None:
    source = random.Random(time.time_ns())
    marks = ["".join(source.choices("qxzvkjw", k=9)) for _ in range(12)]
    for mark in marks:
        server.generate(f"{mark} " * source.randrange(20, 80), 2)
    said = everything_shown(server, " ".join(marks), 4.0)
    # Of the model's tokens none has four of these letters.
    pieces = {mark[i : i + 4] for mark in marks for i in range(6)}
    assert not [piece for piece in pieces if piece in said]
    assert "event: sections" in said


def wait_for(ask: Any, word: str) -> str:
    """What is said once it has a word in it, as it should before long."""
    for _ in range(50):
        if word in (said := str(ask())):
            return said
        time.sleep(0.1)
    raise AssertionError(f"never said {word}")


@pytest.fixture(scope="module")
def keyed(tiny: Path, zygote: Zygote) -> Iterator[Server]:
    """With a key, and the beginnings of prompts shown."""
    flags = ("--max-total-tokens", "4096", "--leankv-profile", "none", "--leankv-show-text", "--api-key", "a-key")
    with zygote.serve("--model-path", str(tiny), *flags) as running:
        yield running


KEY = {"Authorization": "Bearer a-key"}


def test_the_beginnings_of_prompts_are_shown_where_that_was_asked_for(keyed: Server) -> None:
    body = {"text": "the beginning of this one " * 40, "sampling_params": {"max_new_tokens": 2}}
    requests.post(keyed.url + "/generate", json=body, headers=KEY, timeout=60).raise_for_status()
    said = wait_for(lambda: requests.get(keyed.url + PATH, headers=KEY, timeout=30).text, "beginning of")
    assert "the beginning of this one" in said


def test_every_route_is_behind_the_key(keyed: Server) -> None:
    app = FastAPI()
    before = {route.path for route in app.routes}
    install_routes(app)
    added = [route for route in app.routes if route.path not in before]
    assert len(added) == 6
    for route in added:
        for method in route.methods:
            address = keyed.url + route.path
            assert requests.request(method, address, timeout=30).status_code == 401, route.path
            with requests.request(method, address, headers=KEY, stream=True, timeout=30) as answer:
                assert answer.status_code in (200, 400), route.path
    with browser() as tab:
        tab.open(keyed.url.replace("http://", "http://anybody:a-key@") + PATH)
        tab.wait(lambda: "Live" in tab.text("#live"), "that it is live")


def test_a_server_ends_although_somebody_looks(keyed: Server) -> None:
    """The last test of this server."""
    with requests.get(keyed.url + f"{PATH}/events", headers=KEY, stream=True, timeout=30) as looking:
        next(looking.iter_lines())
        os.killpg(keyed.process.pid, signal.SIGTERM)
        assert keyed.process.wait(15) == 0
    assert "Traceback" not in keyed.log_text()


def chats(source: random.Random, text: str) -> Iterator[str]:
    """Prompts of conversations, each a turn longer than the one before, over a few system prompts."""
    while True:
        said = text[(stem := source.randrange(4) * 1500) : stem + 1800]
        for _ in range(source.randrange(2, 8)):
            begin = source.randrange(len(text) - 900)
            said += text[begin : begin + source.randrange(300, 900)]
            yield said


@contextmanager
def load(server: Server) -> Iterator[None]:
    """Requests of three users who share beginnings, at two accuracies, as long as the block lasts."""
    done, text = threading.Event(), (Path(__file__).parents[1] / "tokenizer_text.md").read_text()

    def user(seed: int) -> None:
        source, name = random.Random(seed), ("ada", "bob", "cleo")[seed]
        for turn, prompt in enumerate(chats(source, text)):
            if done.is_set():
                return
            accuracy = source.choice(["near-lossless", "near-lossless", "balanced"])
            fields = {"leankv": {"profile": accuracy}, "rid": f"{name}-{turn}"}
            server.generate(prompt, source.randrange(8, 60), fields=fields)

    users = [threading.Thread(target=user, args=(seed,)) for seed in range(3)]
    for one in users:
        one.start()
    try:
        yield
    finally:
        done.set()
        for one in users:
            one.join()


@pytest.fixture
def looked_at(request: pytest.FixtureRequest) -> Iterator[Server]:
    """What the browser looks at: for the documents' pictures the real model, after a while."""
    if PICTURES is None:
        yield request.getfixturevalue("watched")
        return
    with serve("--max-total-tokens", "9216", "--leankv-demote", "--enable-metrics") as running:
        yield running


def test_a_browser_sees_the_cache_move(looked_at: Server, tmp_path: Path) -> None:
    watched, folder = looked_at, Path(PICTURES or tmp_path)
    with browser() as tab:
        with load(watched):
            if PICTURES:
                time.sleep(150)
            tab.open(watched.url + PATH)
            tab.wait(lambda: "Live" in tab.text("#live"), "that it is live")
            pictures = "return [...document.querySelectorAll('svg[role=img]')].map(s => s.children.length)"
            tab.wait(lambda: min(tab.run(pictures)) > 0 and len(tab.run(pictures)) == 4, "four pictures")
            first = tab.text("#requests")
            tab.wait(lambda: tab.text("#requests") != first, "another request")
            for width in WIDTHS:
                for scheme in SCHEMES:
                    tab.look(width, scheme)
                    assert tab.run("return document.documentElement.scrollWidth") <= width, "nothing is cut off"
                    time.sleep(1.2 if PICTURES else 0)
                    tab.save(folder / f"cache-page-{width}-{scheme}.png")
            tab.look(1280, "light", 1130)
            time.sleep(1.2 if PICTURES else 0)
            tab.save(folder / "cache-page.png")
        figures = watched.info()["leankv"]
        held = f"{figures['tokens_held']:,}"
        tab.wait(lambda: held in tab.text("#now"), f"{held} tokens held")
        tab.run("document.querySelector('#probe-text').value = 'a few words'")
        tab.run("document.querySelector('#probe-form button').click()")
        tab.wait(lambda: "would be computed" in tab.text("#probe-answer"), "an answer")
        tab.run(
            "document.querySelector('#heads rect[data-layer=\"3\"]').dispatchEvent(new Event('click', {bubbles: true}))"
        )
        tab.wait(lambda: "Layer 3" in tab.text("#heads"), "another layer")
        tab.run("document.querySelector('#pause').click()")
        assert tab.text("#live") == "Paused"
        assert tab.console() == []
        assert [url for url in tab.requested() if not url.startswith(watched.url)] == []
