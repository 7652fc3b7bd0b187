"""Requests that ended a server, each refused with a sentence; after each of them it answers as before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from bench.common.server import Server
from bench.request_fuzz.bodies import SERVED_NAME
from bench.request_fuzz.fuzz import fuzz
from tests.e2e.forked import Zygote

POOL, PAGE = 2048, 128
PROMPT = [5, 9, 2, 11]


@pytest.fixture(scope="module")
def hostile(tiny: Path, zygote: Zygote) -> Iterator[Server]:
    """With metrics, which count what clients name."""
    flags = ("--max-total-tokens", str(POOL), "--enable-metrics", "--leankv-profile", "none")
    named = ("--model-path", str(tiny), "--served-model-name", SERVED_NAME)
    with zygote.serve(*named, *flags) as running:
        yield running


def ask(server: Server, fields: dict[str, Any], route: str = "/generate") -> requests.Response:
    """With a prompt and parameters, unless the fields say otherwise."""
    sampling = {"max_new_tokens": 4, **fields.get("sampling_params", {})}
    body = {"input_ids": PROMPT, **fields, "sampling_params": sampling}
    return requests.post(server.url + route, json={k: v for k, v in body.items() if v is not None}, timeout=60)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("empty text", {"text": "", "input_ids": None}, "The prompt is empty"),
    ("no text in a batch", {"text": ["a", ""], "input_ids": None}, "The prompt is empty"),
    ("token beyond", {"input_ids": [1, 5_000_000]}, "has token 5000000; the vocabulary goes from 0 to 511"),
    ("negative token", {"input_ids": [-1]}, "has token -1"),
    ("many log-probabilities", {"return_logprob": True, "top_logprobs_num": 10**6}, "from 0 to 512, not 1000000"),
    ("embeddings", {"positional_embed_overrides": [1, 2]}, "positional_embed_overrides takes tensors"),
    ("no embeddings", {"positional_embed_overrides": []}, "positional_embed_overrides takes tensors"),
    ("embeddings of nothing", {"positional_embed_overrides": [None]}, "positional_embed_overrides takes tensors"),
    ("top-k beyond int32", {"sampling_params": {"top_k": 2**40}}, "top_k goes from -1"),
    ("labels", {"custom_labels": {"a": "b"}}, "custom_labels names 'a'"),
    ("long text", {"text": "a b " * 10**6, "input_ids": None}, "has 4000000 characters; at most"),
    ("many prompts", {"text": ["a"] * 20_000, "input_ids": None}, "asks for 20000 answers"),
    ("a prompt's number", {"input_ids": [1.5, 2]}, "input_ids does not fit: elements must be int or list; got float."),
    ("choices", {"sampling_params": {"n": 10**9}}, "n is a whole number"),
    ("positions beyond", {"token_indices_to_pool": [900]}, "positions in a prompt of 4 tokens, not 900"),
    ("long salt", {"cache_salt": "x" * 10**6}, "cache_salt has 1000000 characters"),
    (
        "deep schema",
        {"sampling_params": {"json_schema": '{"items": ' * 5000 + "{}" + "}" * 5000}},
        "nests 5001 brackets",
    ),
]


@pytest.mark.parametrize(("fields", "said"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_what_ended_a_server_is_refused(hostile: Server, fields: dict[str, Any], said: str) -> None:
    answer = ask(hostile, fields)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert ask(hostile, {}).ok


def test_a_pattern_without_end_ends_its_request_alone(hostile: Server) -> None:
    sampling = {"stop_regex": r"(?s)((.|.)+)+[\ue000\ue001]", "max_new_tokens": 200, "ignore_eos": True}
    answer = ask(hostile, {"sampling_params": sampling})
    assert answer.status_code == 400
    assert "searching takes longer than 1 s" in answer.text
    assert ask(hostile, {}).ok


def test_a_grammar_that_leaves_no_token_ends_its_request_alone(hostile: Server) -> None:
    assert ask(hostile, {"sampling_params": {"regex": "a", "min_new_tokens": 4}}).status_code == 500
    assert ask(hostile, {}).ok


def test_a_prompt_near_the_pools_end_is_answered_or_refused(hostile: Server) -> None:
    longest = POOL - 2 * PAGE
    for length in (longest + 1, POOL - PAGE, POOL - 6, POOL):
        answer = ask(hostile, {"input_ids": [5] * length})
        assert answer.status_code == 400
        assert str(longest) in answer.json()["error"]["message"] or "exceeds" in answer.json()["error"]["message"]
    assert ask(hostile, {"input_ids": [5] * longest}).json()["meta_info"]["completion_tokens"] == 4


def test_salts_of_other_routes_stay_what_they_are(hostile: Server) -> None:
    """A client of /vertex_generate or /v1/responses cannot write what the field writes, nor fill memory with salts."""
    held = {"instances": [{"input_ids": PROMPT * 100}]}
    for salt in ("leankv:small;", "leankv:" + "x" * 4000):
        parameters = {"cache_salt": salt, "sampling_params": {"max_new_tokens": 2}}
        answer = requests.post(hostile.url + "/vertex_generate", json={**held, "parameters": parameters}, timeout=60)
        (prediction,) = answer.json()["predictions"]
        assert prediction["meta_info"]["leankv"]["profile"] == "balanced"
    refused = requests.post(hostile.url + "/v1/score", json={"leankv": {"profile": "small"}}, timeout=60)
    assert refused.status_code == 400


def test_an_error_that_a_route_does_not_catch_is_told(hostile: Server) -> None:
    answer = requests.post(hostile.url + "/api/chat", json={"model": "a", "messages": [], "stream": False}, timeout=60)
    assert answer.status_code == 400
    assert "at least one message" in answer.json()["error"]["message"]


def test_random_requests(hostile: Server) -> None:
    outcome = fuzz(hostile, 100, quiet=True)
    assert sum(outcome.answers.values()) >= 100
    assert not outcome.failures, json.dumps(outcome.failures, indent=1)
    hostile.flush()
    figures = hostile.info()["leankv"]
    assert figures["blocks_free"] == figures["blocks_total"]
    assert not any(word in hostile.log_text() for word in ("leak detected", "[pool-bytes]"))


HI = {"messages": [{"role": "user", "content": "Hi"}]}
LONG = "a b " * 10**6
ODD: list[tuple[str, dict[str, Any], str]] = [
    *((route, {"prompt": LONG}, "at most") for route in ("/tokenize", "/v1/tokenize", "/v1/completions")),
    *(
        (route, {"messages": [{"role": "user", "content": LONG}], "max_tokens": 2}, "characters; at most")
        for route in ("/v1/chat/completions", "/v1/messages", "/tokenize")
    ),
    ("/v1/score", {"query": LONG, "items": ["a"], "label_token_ids": [1]}, "characters; at most"),
    *(
        (route, {**HI, "chat_template_kwargs": {name: 5}}, f"chat_template_kwargs cannot have '{name}'")
        for route in ("/v1/chat/completions", "/tokenize")
        for name in ("tools", "tokenize")
    ),
    ("/v1/chat/completions", {**HI, "chat_template_kwargs": {"documents": 5}}, "fields do not fit together"),
    ("/v1/chat/completions", {**HI, "max_tokens": -1}, "max_tokens goes from 0"),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": -1}, "max_output_tokens goes from 2"),
    ("/open_session", {"capacity_of_str_len": 10, "session_id": "x" * 10_000}, "session_id has 10000 characters"),
    ("/open_session", {"capacity_of_str_len": -1}, "capacity_of_str_len goes from 0"),
    ("/v1/detokenize", {"tokens": [[3], [2**31, 7]]}, "tokens are from 0 to 511, which 2147483648 is not"),
    ("/v1/detokenize", {"tokens": [-1]}, "tokens are from 0 to 511, which -1 is not"),
    (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}], "response_format": [5]},
        "The request's fields do not fit together: 'list' object has no attribute 'get'",
    ),
]


@pytest.mark.parametrize(("route", "fields", "said"), ODD, ids=[f"{route} {said}" for route, _, said in ODD])
def test_what_was_an_error_of_the_server_is_the_clients(
    hostile: Server, route: str, fields: dict[str, Any], said: str
) -> None:
    answer = requests.post(hostile.url + route, json={"model": "default", **fields}, timeout=60)
    assert answer.status_code == 400
    assert said in answer.text


def test_what_the_vocabulary_has_is_detokenized(hostile: Server) -> None:
    answer = requests.post(hostile.url + "/v1/detokenize", json={"tokens": [[40, 41], [42]]}, timeout=60)
    assert answer.ok
    assert len(answer.json()["text"]) == 2


FAILING: list[tuple[str, str, Any, int, str]] = [
    ("POST", "/start_expert_distribution_record", None, 500, "expert_distribution_recorder_mode"),
    ("POST", "/dump_expert_distribution_record", None, 500, "expert_distribution_recorder_mode"),
    ("POST", "/stop_expert_distribution_record", None, 500, "expert_distribution_recorder_mode"),
    ("POST", "/resume_memory_occupation", {"tags": ["x"]}, 500, "ResumeMemoryOccupationReqInput"),
    ("POST", "/send_weights_to_remote_instance", {"master_address": "x", "ports": "a"}, 500, "weight_send_group"),
    ("POST", "/stop_profile", None, 400, "Profiling is not in progress"),
    ("POST", "/start_profile", {"output_dir": "/proc/none", "num_steps": 1}, 400, "No such file or directory"),
    ("POST", "/start_profile", {"activities": ["RPD"]}, 400, "The profile failed"),
    ("POST", "/configure_logging", {"log_requests": True, "log_requests_level": 99}, 400, "log_requests_level is one"),
    ("POST", "/remove_external_corpus", [], 500, "could not handle this request: AttributeError"),
]


@pytest.mark.parametrize(
    ("method", "route", "body", "status", "said"), FAILING, ids=[f"{r[1]} {r[2]}" for r in FAILING]
)
def test_a_control_request_that_fails_ends_alone(
    hostile: Server, method: str, route: str, body: Any, status: int, said: str
) -> None:
    answer = requests.request(method, hostile.url + route, json=body, timeout=60)
    assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True)
    assert ask(hostile, {}).ok


def test_no_control_request_of_nonsense_ends_a_server(hostile: Server) -> None:
    """Every route but those that generate; a pause is taken back."""
    for route, methods in requests.get(hostile.url + "/openapi.json", timeout=60).json()["paths"].items():
        # It waits for others as long as they are asked to, half an hour by default.
        if route.startswith(("/v1/", "/api/", "/init_weights_update_group")):
            continue
        for method in methods:
            for body in (None, {}, [], "x", {"name": "x", "model_path": "/none", "forward_sleep_time": -1}):
                answer = requests.request(method, hostile.url + route, json=body, timeout=60)
                assert answer.status_code < 500 or answer.text != "Internal Server Error", (method, route, body)
                if route == "/pause_generation":
                    requests.post(hostile.url + "/continue_generation", json={}, timeout=60)
        assert ask(hostile, {}).ok, route
