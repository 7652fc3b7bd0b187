"""Ranges of a request's fields: what the model has, what tensors hold, and what a server has memory and time for."""

from __future__ import annotations

import json
import math
import re
from array import array
from functools import cache
from typing import Any

import msgspec

MAX_LOGPROBS = 1 << 22
"""Most log-probabilities of one request; each is a few Python objects in two processes, some 200 bytes."""
MAX_GRAMMAR, MAX_DEPTH = 1 << 20, 64
"""Longest grammar in characters, and how deep its brackets may nest: compilers recurse."""
BIASES = (-1e30, 1e4)
"""Range of a logit bias: certain and forbidden in every dtype, and still a number after it is added."""

RANGES: dict[str, tuple[float, float]] = {
    "max_new_tokens": (0, 2**31 - 1),
    "min_new_tokens": (0, 2**31 - 1),
    "top_k": (-1, 2**30),
    "stream_interval": (1, 2**31 - 1),
    "stop_token_ids": (-(2**31), 2**31 - 1),
    "repetition_penalty": (0.01, 2),
}
"""Of sampling parameters what can be computed with: tensors hold them as int32 and float32."""

MISFITS = (
    *(TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError),
    *(re.error, msgspec.MsgspecError),
)
"""What Python raises where a value has another type or shape than the code that reads it thinks."""

_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
_INTERNAL = {"stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len", "is_normalized"}


def check_tokens(tokens: Any, vocabulary: int, may_be_empty: bool = False) -> None:
    """Whether a prompt is one: a list of tokens of the vocabulary, at least one.

    Raises:
        ValueError: one sentence.
    """
    try:
        numbers = array("q", tokens)
    except (TypeError, OverflowError):
        raise ValueError(f"input_ids takes whole numbers from 0 to {vocabulary - 1}.") from None
    if not numbers:
        if may_be_empty:
            return
        raise ValueError("The prompt is empty: it has no tokens.")
    for outside in (min(numbers), max(numbers)):
        if not 0 <= outside < vocabulary:
            raise ValueError(f"The prompt has token {outside}; the vocabulary goes from 0 to {vocabulary - 1}.")


def check_sampling(params: Any, kind: type, vocabulary: int) -> None:
    """Whether sampling parameters have the types that their class states, and can be sampled with.

    Args:
        params: as the client gave them.
        kind: ``SamplingParams``, or what the server takes for it.
        vocabulary: of the model, in tokens.

    Raises:
        ValueError: one sentence.
    """
    types = _types_of(kind)
    for name, value in (params or {}).items():
        if name not in types:
            raise ValueError(f"sampling_params has no {say(name)}.")
        if value is None or name == "watermark":
            continue
        try:
            msgspec.convert(value, types[name])
        except (msgspec.ValidationError, RecursionError) as error:
            raise ValueError(f"sampling_params.{name} does not fit: {reason(error)}.") from None
        least, most = RANGES.get(name, (-math.inf, math.inf))
        for one in value if name == "stop_token_ids" else [value] if name in RANGES else []:
            if one is not None and not least <= one <= most:
                raise ValueError(f"sampling_params.{name} goes from {least} to {most}, which {say(one)} does not.")
    for name in _GRAMMARS:
        _check_grammar(name, (params or {}).get(name))
    for token, bias in ((params or {}).get("logit_bias") or {}).items():
        if not str(token).isascii() or not str(token).isdigit() or not 0 <= int(token) < vocabulary:
            raise ValueError(f"logit_bias names tokens from 0 to {vocabulary - 1}, not {say(token)}.")
        if not BIASES[0] <= bias <= BIASES[1] and bias != -math.inf:
            raise ValueError(f"logit_bias takes numbers from {BIASES[0]:g} to {BIASES[1]:g}, not {say(bias)}.")


@cache
def _types_of(kind: type) -> dict[str, Any]:
    """Of the parameters that a client may give."""
    return {field.name: field.type for field in msgspec.structs.fields(kind) if field.name not in _INTERNAL}


def check_logprobs(obj: Any, prompt: int, vocabulary: int, context: int) -> None:
    """Whether the log-probabilities that a request asks for exist, and can be given.

    Args:
        obj: the request.
        prompt: its tokens.
        vocabulary: of the model, in tokens.
        context: longest sequence.

    Raises:
        ValueError: one sentence.
    """
    most, start = obj.top_logprobs_num or 0, obj.logprob_start_len
    if type(most) is not int or not 0 <= most <= vocabulary:
        raise ValueError(f"top_logprobs_num is a whole number from 0 to {vocabulary}, not {say(most)}.")
    start = -1 if start is None else start
    if type(start) is not int or not -1 <= start <= prompt:
        raise ValueError(f"logprob_start_len is -1 or a position in a prompt of {prompt}, not {say(start)}.")
    if not obj.return_logprob:
        return
    wanted = (obj.sampling_params or {}).get("max_new_tokens", 128)
    answer = max(0, context - prompt) if wanted is None else min(wanted, max(0, context - prompt))
    positions = answer + (prompt - start if start >= 0 else 0)
    values = positions * (most + len(obj.token_ids_logprob or ()))
    if values > MAX_LOGPROBS:
        raise ValueError(
            f"This asks for {values} log-probabilities, at {positions} positions; a request gets {MAX_LOGPROBS}:"
            " ask for fewer tokens (max_new_tokens), later ones (logprob_start_len) or fewer each (top_logprobs_num)."
        )


def _check_grammar(name: str, text: Any) -> None:
    if not isinstance(text, str):
        return
    if len(text) > MAX_GRAMMAR:
        raise ValueError(f"{name} has {len(text)} characters; at most {MAX_GRAMMAR} are taken.")
    depth = deepest = 0
    for bracket in re.findall(r"[\[({\])}]", text):
        depth += 1 if bracket in "[({" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ValueError(f"{name} nests {deepest} brackets; at most {MAX_DEPTH} are taken.")


def reason(error: BaseException) -> str:
    """What an exception says, without where it says it."""
    if isinstance(error, KeyError) and error.args:
        return f"there is no {say(error.args[0])}"
    return say(str(error).partition(" - at `$")[0].rstrip(".") or type(error).__name__)


def say(value: Any, most: int = 160) -> str:
    """A value in a sentence as its client wrote it, in JSON, cut where it is long; a sentence as it is."""
    try:
        if isinstance(value, str):
            text = value if " " in value else ascii(value)
        else:
            text = json.dumps(value)
    except RecursionError:
        return "something that nests too deeply"
    except (TypeError, ValueError):
        text = ascii(value)
    return text if len(text) <= most else text[: most - 10] + "[...]"
