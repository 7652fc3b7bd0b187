"""Targets: ``normalize_batch_and_arguments`` and ``__getitem__`` of ``GenerateReqInput`` and ``EmbeddingReqInput``;
``_tokenize_texts``, ``_validate_one_request`` and ``_create_tokenized_object`` of ``TokenizerManager``, of sglang 0.5.23.

Reason: fields that no route checks reach the scheduler, where an empty prompt, a token outside the vocabulary or a value
of another type ends the process, and with it everybody's requests. Here, where all routes meet, each field is held
against what the scheduler takes: against its type by the scheduler's own decoder, against its range by this table. A
request that does not pass is refused with one sentence.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from leankv_patches import hook

_INPUTS = "sglang.srt.managers.io_struct"
_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"
_KINDS = [f"{_INPUTS}.{kind}" for kind in ("GenerateReqInput", "EmbeddingReqInput")]
NORMALIZE, ITEM = ([f"{kind}.{name}" for kind in _KINDS] for name in ("normalize_batch_and_arguments", "__getitem__"))
TOKENIZE, VALIDATE, CREATE = (
    f"{_MANAGER}.{name}" for name in ("_tokenize_texts", "_validate_one_request", "_create_tokenized_object")
)
TARGETS: dict[str, list[str] | None] = {
    **{target: ["self"] for target in NORMALIZE},
    **{target: ["self", "i"] for target in ITEM},
    TOKENIZE: ["self", "texts", "is_cross_encoder"],
    VALIDATE: ["self", "obj", "input_ids"],
    CREATE: ["self", "obj", "input_text", "input_ids", "input_embeds", "mm_inputs", "token_type_ids"],
}
"""What is hooked, with its arguments."""

MAX_CHOICES = 4096
"""Largest ``n``: each choice is a request of its own before anything else looks at it."""
MAX_LOGPROBS = 1 << 22
"""Most log-probabilities of one request; each is a few Python objects in two processes, some 200 bytes."""
MAX_NAME = 4096
"""Longest name that a request brings (salt, id, session ...), in characters: the tree keeps them with its pages."""
MAX_GRAMMAR, MAX_DEPTH = 1 << 20, 64
"""Longest grammar in characters, and how deep its brackets may nest: compilers recurse."""
BIASES = (-1e30, 1e4)
"""Range of a logit bias: certain and forbidden in every dtype, and still a number after it is added."""

_NAMES = ("rid", "cache_salt", "extra_key", "session_id", "routing_key", "lora_path", "conversation_id")
_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
_INTERNAL = {"stop_strs", "stop_regex_strs", "stop_str_max_len", "stop_regex_max_len", "is_normalized"}
# What Python raises where a value has another type or shape than the code that reads it thinks.
_MISFITS = (TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, re.error, msgspec.MsgspecError)


def normalize(original: Callable[[Any], None], obj: Any) -> None:
    """A request as it came: what is read before it is taken apart.

    Raises:
        ValueError: one sentence saying what is wrong with the request.
    """
    params = obj.sampling_params
    for one in params if isinstance(params, list) else [params]:
        if one is not None and not isinstance(one, dict):
            raise ValueError(f"sampling_params takes an object for each prompt, not {_say(one)}.")
        n = (one or {}).get("n", 1)
        if n is None:
            del one["n"]
        elif type(n) is not int or not 1 <= n <= MAX_CHOICES:
            raise ValueError(f"n is a whole number from 1 to {MAX_CHOICES}, not {_say(n)}.")
    if params == []:
        raise ValueError("sampling_params takes an object for each prompt, not an empty list.")
    for name in _NAMES:
        value = getattr(obj, name, None)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and len(one) > MAX_NAME:
                raise ValueError(f"{name} has {len(one)} characters; at most {MAX_NAME} are taken.")
    _check_embeds(getattr(obj, "positional_embed_overrides", None))
    _fit(original, obj)
    if obj.is_single and not isinstance(obj.rid, str):
        raise ValueError(f"rid is a string for a single prompt, not {_say(obj.rid)}.")


def item(original: Callable[[Any, int], Any], obj: Any, i: int) -> Any:
    """One prompt of a batch with its fields.

    Raises:
        ValueError: one sentence, where a field has fewer entries than there are prompts.
    """
    return _fit(original, obj, i)


async def tokenize(original: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
    """Texts that the tokenizer cannot take are the client's fault.

    Raises:
        ValueError: one sentence.
    """
    try:
        return await original(*args, **named)
    except (TypeError, UnicodeError) as error:
        raise ValueError(f"The prompt cannot be tokenized: {_say(error)}.") from error


def validate(original: Callable[..., None], manager: Any, obj: Any, input_ids: Any) -> None:
    """One prompt of a request with its fields, before SGLang judges its length.

    Raises:
        ValueError: one sentence saying what is wrong with the request.
    """
    vocabulary = manager.model_config.vocab_size
    if input_ids is not None and not obj.contains_mm_input():
        check_tokens(input_ids, vocabulary, may_be_empty=bool(getattr(obj, "session_params", None)))
    check_sampling(obj.sampling_params, manager.sampling_params_class, vocabulary)
    _fit(original, manager, obj, input_ids)
    if hasattr(obj, "top_logprobs_num"):
        check_logprobs(obj, len(input_ids or ()), vocabulary, manager.context_len)
    for name in ("multi_item_delimiter_indices", "token_indices_to_pool"):
        _check_positions(name, getattr(obj, name, None), len(input_ids or ()))
    _check_positions("positional_embed_overrides", _positions(obj), len(input_ids or ()))


def create(original: Callable[..., Any], manager: Any, *args: Any, **named: Any) -> Any:
    """The request as the scheduler will get it: decoded once by the scheduler's own decoder.

    Raises:
        ValueError: one sentence naming the field that does not fit.
    """
    request = _fit(original, manager, *args, **named)
    check_wire(request)
    return request


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
    types = {field.name: field.type for field in msgspec.structs.fields(kind) if field.name not in _INTERNAL}
    for name, value in (params or {}).items():
        if name not in types:
            raise ValueError(f"sampling_params has no {_say(name)}.")
        if value is None or name == "watermark":
            continue
        try:
            msgspec.convert(value, types[name])
        except (msgspec.ValidationError, RecursionError) as error:
            raise ValueError(f"sampling_params.{name} does not fit: {_reason(error)}.") from None
    for name in _GRAMMARS:
        _check_grammar(name, (params or {}).get(name))
    for token, bias in ((params or {}).get("logit_bias") or {}).items():
        if not str(token).isascii() or not str(token).isdigit() or not 0 <= int(token) < vocabulary:
            raise ValueError(f"logit_bias names tokens from 0 to {vocabulary - 1}, not {_say(token)}.")
        if not BIASES[0] <= bias <= BIASES[1] and bias != -math.inf:
            raise ValueError(f"logit_bias takes numbers from {BIASES[0]:g} to {BIASES[1]:g}, not {_say(bias)}.")


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
        raise ValueError(f"top_logprobs_num is a whole number from 0 to {vocabulary}, not {_say(most)}.")
    start = -1 if start is None else start
    if type(start) is not int or not -1 <= start <= prompt:
        raise ValueError(f"logprob_start_len is -1 or a position in a prompt of {prompt}, not {_say(start)}.")
    if not obj.return_logprob:
        return
    wanted = (obj.sampling_params or {}).get("max_new_tokens", 128)
    answer = max(0, context - prompt) if wanted is None else min(wanted, max(0, context - prompt))
    positions = answer + (prompt - start if start >= 0 else 0)
    values = positions * (most + len(obj.token_ids_logprob or ()))
    if values > MAX_LOGPROBS:
        raise ValueError(
            f"This asks for {values} log-probabilities, at {positions} positions; a request gets {MAX_LOGPROBS} at most:"
            " ask for fewer tokens (max_new_tokens), later ones (logprob_start_len) or fewer each (top_logprobs_num)."
        )


def check_wire(request: Any) -> None:
    """Whether the scheduler's decoder takes a tokenized request.

    Raises:
        ValueError: one sentence naming the field.
    """
    from sglang.srt.managers import io_struct

    # Of these only SGLang itself is the author; the first is wrapped when it is sent.
    plain = {name: None for name in ("time_stats", "mm_inputs", "positional_embed_overrides")}
    try:
        io_struct.msgpack_decode(io_struct.msgpack_encode(msgspec.structs.replace(request, **plain)))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{_field_of(request, error)} does not fit: {_reason(error)}.") from error


def _fit(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
    try:
        return original(*args, **named)
    except _MISFITS as error:
        raise ValueError(f"The request's fields do not fit together: {_reason(error)}.") from error


def _check_embeds(given: Any) -> None:
    from sglang.srt.managers.embed_types import PositionalEmbeds

    for one in given if isinstance(given, list) else [given]:
        if one is not None and not isinstance(one, PositionalEmbeds):
            raise ValueError("positional_embed_overrides takes tensors, which only the engine's Python interface has.")


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


def _positions(obj: Any) -> Any:
    return getattr(getattr(obj, "positional_embed_overrides", None), "positions", None)


def _check_positions(name: str, positions: Any, prompt: int) -> None:
    for one in positions or ():
        if type(one) is not int or not 0 <= one < prompt:
            raise ValueError(f"{name} takes positions in a prompt of {prompt} tokens, not {_say(one)}.")


def _field_of(request: Any, error: Exception) -> str:
    """The field that a decoder's message points to: it counts them, the tag being the first."""
    where = re.search(r"\$\[(\d+)\]", str(error))
    if where is None:
        return "A field of the request"
    return msgspec.structs.fields(type(request))[int(where[1]) - 1].name


def _reason(error: BaseException) -> str:
    return _say(str(error).partition(" - at `$")[0].rstrip(".") or type(error).__name__)


def _say(value: Any) -> str:
    text = value if isinstance(value, str) and " " in value else ascii(value)
    return text if len(text) <= 160 else text[:150] + "[...]"


def install() -> None:
    """Register the hooks. Call before requests are taken."""
    for target in NORMALIZE:
        hook.register(target, normalize, "AROUND")
    for target in ITEM:
        hook.register(target, item, "AROUND")
    for target, replacement in ((TOKENIZE, tokenize), (VALIDATE, validate), (CREATE, create)):
        hook.register(target, replacement, "AROUND")


def problem() -> str | None:
    """A sentence if a hook did not take or a target changed its arguments, else None."""
    return hook.first_problem(TARGETS, "checks of a request's fields")
