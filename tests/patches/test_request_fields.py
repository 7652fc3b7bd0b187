"""What the front refuses of a request's fields, each with a sentence, and what it lets pass."""

from __future__ import annotations

import math
from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.managers.embed_types import PositionalEmbeds
from sglang.srt.managers.io_struct import GenerateReqInput, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from leankv_patches import request_fields as fields
from leankv_patches import request_ranges as ranges

VOCABULARY, CONTEXT = 512, 8192


def _normalized(**given: Any) -> GenerateReqInput:
    obj = GenerateReqInput(**{"input_ids": [1, 2], **given})
    fields.normalize(GenerateReqInput.normalize_batch_and_arguments, obj)
    return obj


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([], "The prompt is empty"),
        ([1, 512], "has token 512; the vocabulary goes from 0 to 511"),
        ([-1, 3], "has token -1"),
        ([1, "a"], "input_ids takes whole numbers"),
        ([1.0], "input_ids takes whole numbers"),
        ([2**70], "input_ids takes whole numbers"),
        ([[1]], "input_ids takes whole numbers"),
    ],
)
def test_prompts(tokens: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ranges.check_tokens(tokens, VOCABULARY)
    ranges.check_tokens([0, 511], VOCABULARY)
    ranges.check_tokens([], VOCABULARY, may_be_empty=True)


BAD_SAMPLING: list[tuple[dict[str, Any], str]] = [
    ({"temperature": "hot"}, "sampling_params.temperature does not fit"),
    ({"max_new_tokens": 3.5}, "sampling_params.max_new_tokens does not fit: Expected `int"),
    ({"max_new_tokens": 2**31}, "max_new_tokens goes from 0"),
    ({"top_k": 2**40}, "top_k goes from -1 to 1073741824"),
    ({"stop": [1]}, "sampling_params.stop does not fit"),
    ({"stop_token_ids": [2**63]}, "stop_token_ids goes from"),
    ({"stop_token_ids": 7}, "stop_token_ids does not fit"),
    ({"stream_interval": 0}, "stream_interval goes from 1"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty goes from 0.01"),
    ({"repetition_penalty": math.nan}, "repetition_penalty goes from 0.01"),
    ({"custom_params": {"a": {"b": {"c": {"d": 1}}}}}, "custom_params does not fit"),
    ({"logit_bias": {"512": 1.0}}, "logit_bias names tokens from 0 to 511, not '512'"),
    ({"logit_bias": {"-1": 1.0}}, "logit_bias names tokens"),
    ({"logit_bias": {"1": math.nan}}, "logit_bias takes numbers"),
    ({"logit_bias": {"1": 1e30}}, "logit_bias takes numbers"),
    ({"logit_bias": {"1": "2"}}, "logit_bias does not fit"),
    ({"json_schema": '{"items": ' * 5000 + "{}" + "}" * 5000}, "json_schema nests 5001 brackets"),
    ({"regex": "a" * 2**21}, "regex has 2097152 characters"),
    ({"max_tokens": 3}, "sampling_params has no 'max_tokens'"),
    ({"is_normalized": True}, "sampling_params has no 'is_normalized'"),
]


@pytest.mark.parametrize(("params", "said"), BAD_SAMPLING, ids=lambda x: str(x)[:40])
def test_sampling_parameters(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ranges.check_sampling(params, SamplingParams, VOCABULARY)


def test_sampling_parameters_that_pass() -> None:
    good = {
        **{
            "temperature": 0,
            "top_p": 1,
            "top_k": -1,
            "n": 4,
            "max_new_tokens": None,
            "stop": ["a"],
            "stop_token_ids": [9],
        },
        **{"logit_bias": {"5": -100, "6": -1e30, "7": -math.inf}, "json_schema": '{"type": "object"}'},
        **{"custom_params": {"a": [1, "b"]}, "repetition_penalty": 2, "sampling_seed": -5},
    }
    ranges.check_sampling(good, SamplingParams, VOCABULARY)
    ranges.check_sampling(None, SamplingParams, VOCABULARY)


MOST = {"top_logprobs_num": 512, "sampling_params": {"max_new_tokens": None}}
"""At as many positions as there can be, just within what a request gets."""


def _asks(prompt: int = 100, **given: Any) -> None:
    stated = {"top_logprobs_num": 0, "logprob_start_len": -1, "return_logprob": True, "token_ids_logprob": None}
    obj = SimpleNamespace(**{**stated, "sampling_params": {"max_new_tokens": 100}, **given})
    ranges.check_logprobs(obj, prompt, VOCABULARY, CONTEXT)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"top_logprobs_num": 10**6}, "top_logprobs_num is a whole number from 0 to 512, not 1000000"),
        ({"top_logprobs_num": -1}, "top_logprobs_num is"),
        ({"top_logprobs_num": True}, "top_logprobs_num is"),
        ({"logprob_start_len": 101}, "a position in a prompt of 100, not 101"),
        ({"logprob_start_len": -2}, "logprob_start_len is"),
        ({"prompt": 0, **MOST, "token_ids_logprob": [1, 2]}, "asks for 4210688 log-probabilities, at 8192 positions"),
        (
            {"top_logprobs_num": 512, "prompt": 8191, "logprob_start_len": 0, "token_ids_logprob": [1]},
            "at 8192 positions",
        ),
    ],
)
def test_log_probabilities(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _asks(**given)
    _asks(top_logprobs_num=20, logprob_start_len=100)
    _asks(prompt=0, **MOST)
    _asks(prompt=0, **MOST, token_ids_logprob=[1, 2], return_logprob=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampling_params": {"n": 10**9}}, "n is a whole number from 1 to 4096, not 1000000000"),
        ({"sampling_params": [{"n": 0}], "input_ids": [[1]]}, "n is a whole number"),
        ({"sampling_params": {"n": "2"}}, "n is a whole number"),
        ({"sampling_params": [3], "input_ids": [[1]]}, "sampling_params takes an object"),
        ({"sampling_params": [], "input_ids": [[1]]}, "not an empty list"),
        ({"cache_salt": "x" * 5000}, "cache_salt has 5000 characters; at most 4096"),
        ({"rid": ["a", "y" * 5000], "input_ids": [[1], [2]]}, "rid has 5000 characters"),
        ({"rid": ["a"]}, "rid is a string for a single prompt"),
        ({"positional_embed_overrides": [1, 2]}, "positional_embed_overrides takes tensors"),
        ({"input_ids": 5}, "do not fit together"),
        ({"sampling_params": [{}], "input_ids": [[1], [2]]}, "^sampling_params has 1 entry for 2 prompts.$"),
        (
            {"sampling_params": [{}, {}, {}]},
            "^sampling_params is a list; for a single prompt it is that prompt's value alone.$",
        ),
        ({"sampling_params": [{}], "input_ids": None, "text": "a"}, "^sampling_params is a list"),
        ({"return_logprob": [True]}, "^return_logprob is a list"),
        ({"extra_key": ["a"]}, "^extra_key is a list"),
        ({"return_logprob": [True, True], "input_ids": [[1]]}, "^return_logprob has 2 entries for 1 prompt.$"),
        ({"token_ids_logprob": [[1]], "input_ids": [[1], [2]]}, "token_ids_logprob has 1 entry for 2 prompts"),
        ({"input_ids": [[1]] * 4097}, "asks for 4097 answers, 1 for each of 4097 prompts; a request gets 4096"),
        ({"input_ids": [[1]] * 2000, "sampling_params": {"n": 3}}, "asks for 6000 answers, 3 for each of 2000"),
        ({"input_ids": [[1]] * 2048, "sampling_params": {"n": 2}}, None),
        ({"input_ids": [[1], [2]], "token_ids_logprob": [1], "sampling_params": [{"n": None}, {}]}, None),
        ({"text": [], "input_ids": None, "sampling_params": {"n": 2}}, None),
    ],
)
def test_requests(given: dict[str, Any], said: str | None) -> None:
    if said is None:
        _normalized(**given)
        return
    with pytest.raises(ValueError, match=said):
        _normalized(**given)


def test_positions_are_a_list_for_each_prompt() -> None:
    for positions, said in ((-1, "a list of positions for each prompt, not -1"), ([2], "prompt of 2 tokens, not 2")):
        with pytest.raises(ValueError, match=said):
            fields._check_positions("token_indices_to_pool", positions, 2)
    fields._check_positions("token_indices_to_pool", [0, 1], 2)


def test_requests_that_pass() -> None:
    assert _normalized(sampling_params={"n": None}).sampling_params == {}
    assert len(_normalized(sampling_params={"n": 3}).rid) == 3
    embeds = PositionalEmbeds(embeds=torch.zeros(1, 4), positions=[1])
    assert _normalized(positional_embed_overrides=embeds).positional_embed_overrides is embeds


def _tokenized(**given: Any) -> TokenizedGenerateReqInput:
    stated: dict[str, Any] = {
        **{"rid": "a", "input_text": "", "input_ids": array("q", [1, 2]), "input_embeds": None, "mm_inputs": None},
        **{"token_type_ids": None, "sampling_params": SamplingParams(), "return_logprob": False, "stream": False},
        **{"logprob_start_len": -1, "top_logprobs_num": 0, "token_ids_logprob": None},
    }
    return TokenizedGenerateReqInput(**{**stated, **given})


NAMES = ["priority", "extra_key", "routing_key", "bootstrap_room", "session_id", "token_indices_to_pool", "stream"]


@settings(max_examples=50, deadline=None)
@given(name=st.sampled_from(NAMES), value=st.sampled_from([{"a": 1}, 2**70, "\ud800", 1.5, object]))
def test_what_the_schedulers_decoder_refuses_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^({name}|A field of the request) does not fit"):
        fields.check_wire(_tokenized(**{name: value}))


@pytest.mark.parametrize("given", [[], [None], {}, 0, "", False])
def test_the_scheduler_gets_embeddings_as_tensors_alone(given: object) -> None:
    """A list of none for a single prompt ended it."""
    with pytest.raises(ValueError, match="positional_embed_overrides takes tensors"):
        fields.check_wire(_tokenized(positional_embed_overrides=given))


def test_what_the_schedulers_decoder_takes_passes() -> None:
    fields.check_wire(_tokenized(priority=3, extra_key="a", token_indices_to_pool=[1], time_stats=object()))
    with pytest.raises(ValueError, match=r"^priority does not fit: Expected `int"):
        fields.check_wire(_tokenized(priority="3"))
