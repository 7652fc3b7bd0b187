"""What reading a request raises is the client's fault, with a sentence; sessions too are opened with what fits."""

from __future__ import annotations

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest
from sglang.srt.entrypoints.openai.serving_tokenize import OpenAIServingDetokenize
from sglang.srt.managers.io_struct import OpenSessionReqInput
from sglang.srt.plugins.hook_registry import HookRegistry

from leankv_patches import conversion, sessions


def _raising(error: BaseException, cause: BaseException | None = None) -> Any:
    def method(*args: Any) -> None:
        raise error from cause

    return method


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("tools"), "^The request's fields do not fit together: there is no 'tools'.$"),
        (TypeError("no number"), "do not fit together: no number.$"),
        (AttributeError("'int' has no items"), "do not fit together"),
        (RecursionError("too deep here"), "do not fit together"),
        (ZeroDivisionError("division by zero"), "do not fit together"),
        (ValueError("Say it otherwise."), "^Say it otherwise.$"),
    ],
)
def test_what_reading_raises_is_a_sentence(error: Exception, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        conversion.convert(_raising(error), SimpleNamespace())


def test_a_models_dump_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"^messages is missing\.$"):
        conversion.convert(lambda: ChatCompletionRequest(model="a"))


def test_what_sglang_made_of_an_error_of_python_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="do not fit together: 'int' object is not iterable"):
        conversion.convert(_raising(ValueError("x"), TypeError("'int' object is not iterable")))


def test_other_errors_stay_the_servers() -> None:
    with pytest.raises(OSError, match="disk"):
        conversion.convert(_raising(OSError("disk")))


@pytest.mark.parametrize("name", conversion.GIVEN)
def test_a_template_gets_no_second_argument_of_a_name(name: str) -> None:
    request = SimpleNamespace(chat_template_kwargs={name: 5})
    with pytest.raises(ValueError, match=f"chat_template_kwargs cannot have '{name}'"):
        conversion.convert(lambda request: request, request)
    request.chat_template_kwargs = {"enable_thinking": False, "documents": []}
    assert conversion.convert(lambda request: request, request) is request


@pytest.mark.parametrize("trusted", [False, True])
def test_a_clients_template_is_taken_where_it_is_trusted(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt import runtime_context

    serving = SimpleNamespace(trust_request_chat_template=trusted)
    monkeypatch.setattr(runtime_context, "get_serving", lambda: serving)
    request = SimpleNamespace(chat_template_kwargs={"chat_template": "{{ messages }}"})
    if trusted:
        assert conversion.convert(lambda request: request, request) is request
        return
    with pytest.raises(ValueError, match="only with --trust-request-chat-template"):
        conversion.convert(lambda request: request, request)


def test_limits_are_told_by_the_clients_names() -> None:
    for name, value in (("max_tokens", -1), ("max_completion_tokens", 2**40)):
        with pytest.raises(ValueError, match=f"^{name} goes from 0 to 2147483647, which {value} does not"):
            conversion.convert(lambda request: request, SimpleNamespace(**{name: value}))


def test_a_checks_answer_is_its_first_line() -> None:
    assert conversion.convert(lambda: "Tool 0 is none: 5\n\nFailed validating\n  {...}") == "Tool 0 is none: 5"


@pytest.mark.parametrize(("most", "fits"), [(-1, False), (1, False), (2**40, False), (2, True), (None, True)])
def test_the_limit_of_a_response_is_its_own(most: int | None, fits: bool) -> None:
    serving = SimpleNamespace(create_error_response=lambda said, param: (said, param))

    async def original(serving: Any, request: Any) -> str:
        return "answered"

    request = SimpleNamespace(max_output_tokens=most)
    answer = asyncio.run(conversion.create_responses(original, serving, request))
    said = f"max_output_tokens goes from 2 to 2147483647, which {most} does not."
    assert answer == ("answered" if fits else (said, "max_output_tokens"))


def test_a_response_that_cannot_be_read_is_told_without_its_cause() -> None:
    from sglang.srt.entrypoints.openai.serving_responses import _MediaInputValidationError

    async def original() -> None:
        raise KeyError("role")

    with pytest.raises(
        _MediaInputValidationError, match=r"^The request's fields do not fit together: there is no 'role'\.$"
    ):
        asyncio.run(conversion.make_request(original))


def test_every_serving_class_reads_so(own_registry: Any) -> None:
    own_registry(conversion.TARGETS)
    conversion.install()
    HookRegistry.apply_hooks()
    serving = OpenAIServingDetokenize(SimpleNamespace(server_args=None))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit together"):
        serving._convert_to_internal_request()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"session_id": "x" * 10_000}, "session_id has 10000 characters; at most 4096"),
        ({"capacity_of_str_len": -1}, "capacity_of_str_len goes from 0 to 2147483647, which -1 does not"),
        ({"capacity_of_str_len": 2**40}, "capacity_of_str_len goes from 0"),
        ({"timeout": -1.0}, "timeout is more than 0 s"),
        ({"timeout": 0.0}, "timeout is more than 0 s"),
        ({"timeout": math.nan}, "timeout is more than 0 s"),
        ({"timeout": math.inf}, "timeout is more than 0 s"),
        ({"session_id": "x" * 4096, "timeout": 5.0, "capacity_of_str_len": 0}, None),
        ({}, None),
    ],
)
def test_a_session_is_opened_with_what_fits(given: dict[str, Any], said: str | None) -> None:
    async def original(manager: Any, obj: Any) -> str:
        return "opened"

    obj = OpenSessionReqInput(**{"capacity_of_str_len": 10, **given})
    if said is None:
        assert asyncio.run(sessions.open_session(original, None, obj)) == "opened"
        return
    with pytest.raises(ValueError, match=said):
        asyncio.run(sessions.open_session(original, None, obj))
