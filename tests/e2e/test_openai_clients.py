"""OpenAI clients and SGLang frontend programs work unchanged."""

from __future__ import annotations

import json

import openai
import pytest
import requests

from bench.common.server import Server

MODEL = "default"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "country": {"type": "string", "maxLength": 20}},
    "required": ["city", "country"],
    "additionalProperties": False,
}
ROUTES = ("/generate", "/v1/completions", "/v1/chat/completions")


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    """The OpenAI client, pointed at the server."""
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none")


def test_completion_knows_paris(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0)
    assert "Paris" in answer.choices[0].text


def test_streaming_equals_not_streaming(client: openai.OpenAI) -> None:
    ask = {"model": MODEL, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    whole = client.chat.completions.create(**ask, max_tokens=12, temperature=0)
    chunks = list(client.chat.completions.create(**ask, max_tokens=12, temperature=0, stream=True))
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in streamed
    assert len(chunks) > 3
    assert streamed == whole.choices[0].message.content


def test_what_came_from_the_cache_is_told_without_a_flag(client: openai.OpenAI) -> None:
    prompt = "The owl is wise and the hare is quick. " * 30
    ask = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0}
    told = [client.completions.create(**ask).usage.prompt_tokens_details.cached_tokens for _ in range(2)]
    assert told[0] == 0
    assert told[1] >= 128


def test_plain_http(server: Server) -> None:
    body = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
    answer = requests.post(server.url + "/v1/completions", json=body, timeout=120).json()
    assert "Paris" in answer["choices"][0]["text"]


def test_sampling_is_seeded_and_varied(client: openai.OpenAI) -> None:
    """n=2 at temperature 0.8 gives two full answers; the two share the prompt's pages."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell me a story about a fox. " + "The fox is red. " * 30}],
        max_tokens=16,
        temperature=0.8,
        n=2,
    )
    texts = [c.message.content for c in answer.choices]
    assert len(texts) == 2
    assert all(texts)
    assert texts[0] != texts[1]


def test_json_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "The capital of France, as JSON with city and country."}],
        max_tokens=64,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}},
    )
    place = json.loads(answer.choices[0].message.content or "")
    assert set(place) == {"city", "country"}


def test_frontend_program_forks_and_generates(server: Server) -> None:
    import sglang as sgl

    @sgl.function
    def advice(s: sgl.ProgramState, topic: str) -> None:
        s += sgl.system("You are helpful. " + "Answer briefly. " * 42)
        s += sgl.user(f"Give me two tips about {topic}.")
        forks = s.fork(2)
        for i, branch in enumerate(forks):
            branch += sgl.assistant(f"Tip {i + 1}: " + sgl.gen("tip", max_tokens=12, temperature=0))
        s += sgl.assistant(
            "\n".join(branch["tip"] for branch in forks) + sgl.gen("end", max_tokens=8, temperature=0, ignore_eos=True)
        )

    state = advice.run(topic="sleep", backend=sgl.RuntimeEndpoint(server.url))
    assert state["end"]
    assert state.text().count("Tip") >= 2 or "tip" in state.text().lower()


@pytest.mark.parametrize("route", ROUTES)
def test_a_bad_field_is_a_400(route: str, server: Server) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "default", "text": "Hi", "leankv": {"profile": "tiny"}}
    if route != "/generate":
        body = {"model": "default", "prompt": "Hi", "messages": messages, "leankv": {"profile": "tiny"}, "stream": True}
    answer = requests.post(server.url + route, json=body, timeout=60)
    assert answer.status_code == 400
    told = answer.json()
    message = told["error"]["message"] if route == "/generate" else told["message"]
    assert message == "leankv.profile takes near-lossless, balanced, small, not 'tiny'."


def test_an_accuracy_through_the_client(server: Server) -> None:
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    extra = {"leankv": {"profile": "small"}}
    ask = {"model": MODEL, "max_tokens": 6, "temperature": 0, "extra_body": extra}
    text = "The fox is red and the wolf is grey. " * 13
    completion = client.completions.create(prompt=[text, "The capital of France is"], **ask)
    told = completion.model_extra["metadata"]["leankv"]
    assert [one["profile"] for one in told] == ["small"] * 2
    assert told[0]["bytes"] > 0
    # All in its open page, so that there is nothing to tell a ratio of.
    assert (told[1]["compressed_tokens"], told[1]["bytes"], told[1]["ratio"]) == (0, 0, None)
    assert told[1]["bytes_open_page"] > 0
    messages = [{"role": "user", "content": text}]
    chat = client.chat.completions.create(messages=messages, n=2, **ask)
    assert [one["profile"] for one in chat.model_extra["metadata"]["leankv"]] == ["small"] * 2
    stream = client.chat.completions.create(messages=messages, stream=True, **ask)
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == chat.choices[0].message.content
    # The same prefix, one accuracy: native and OpenAI share.
    hit = server.generate(text, 4, fields=extra)
    assert hit.cached >= 128
    for wrong in ({"leankv": 5}, {"leankv": {"alpha_low": -1}}):
        with pytest.raises(openai.BadRequestError, match="leankv"):
            client.chat.completions.create(messages=messages, **{**ask, "extra_body": wrong})
