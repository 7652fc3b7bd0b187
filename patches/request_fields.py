"""Targets: ``normalize_batch_and_arguments`` and ``__getitem__`` of ``GenerateReqInput`` and ``EmbeddingReqInput``;
``_tokenize_texts``, ``_validate_one_request`` and ``_create_tokenized_object`` of ``TokenizerManager``; sglang 0.5.23.

Reason: fields that no route checks reach the scheduler, where an empty prompt, a token outside the vocabulary or a
value of another type ends the process, and with it everybody's requests. Here, where all routes meet, each field is
held against what the scheduler takes: its type by the scheduler's own decoder, its range by ``request_ranges``. A
request that does not pass is refused with one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from leankv_patches import hook, long_texts
from leankv_patches.request_entries import check_entries
from leankv_patches.request_ranges import MISFITS, check_logprobs, check_sampling, check_tokens, reason, say

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

MAX_NAME = 4096
"""Longest name that a request brings (salt, id, session ...), in characters: the tree keeps them with its pages."""
_NAMES = ("rid", "cache_salt", "extra_key", "session_id", "routing_key", "lora_path", "conversation_id")


def normalize(original: Callable[[Any], None], obj: Any) -> None:
    """A request as it came: what is read before it is taken apart.

    Raises:
        ValueError: one sentence saying what is wrong with the request.
    """
    check_entries(obj)
    check_names(obj)
    embeds = getattr(obj, "positional_embed_overrides", None)
    for one in embeds if isinstance(embeds, list) else [embeds]:
        _check_embeds(one)
    if getattr(obj, "custom_labels", None):
        _check_labels(obj.custom_labels)
    _fit(original, obj)
    if obj.is_single and not isinstance(obj.rid, str):
        raise ValueError(f"rid is a string for a single prompt, not {say(obj.rid)}.")


def item(original: Callable[[Any, int], Any], obj: Any, i: int) -> Any:
    """One prompt of a batch with its fields.

    Raises:
        ValueError: one sentence, where a field has fewer entries than there are prompts.
    """
    return _fit(original, obj, i)


async def tokenize(
    original: Callable[..., Coroutine[Any, Any, Any]], manager: Any, texts: Any, *args: Any, **named: Any
) -> Any:
    """Texts that the tokenizer cannot take are the client's fault; long ones are not everybody's.

    Raises:
        ValueError: one sentence.
    """
    try:
        # A batching tokenizer has its own thread, which it waits for.
        if manager.async_dynamic_batch_tokenizer is None and long_texts.length(texts) > long_texts.LONG:
            return await long_texts.aside(original(manager, texts, *args, **named))
        return await original(manager, texts, *args, **named)
    except (TypeError, UnicodeError) as error:
        raise ValueError(f"The prompt cannot be tokenized: {say(error)}.") from error


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


def check_wire(request: Any) -> None:
    """Whether the scheduler's decoder takes a tokenized request.

    Raises:
        ValueError: one sentence naming the field.
    """
    from sglang.srt.managers import io_struct

    _check_embeds(request.positional_embed_overrides)
    # Of these only SGLang itself is the author; the first is wrapped when it is sent.
    plain = dict.fromkeys(("time_stats", "mm_inputs", "positional_embed_overrides"))
    try:
        io_struct.msgpack_decode(io_struct.msgpack_encode(msgspec.structs.replace(request, **plain)))
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{_field_of(request, error)} does not fit: {reason(error)}.") from error


def check_names(obj: Any) -> None:
    """Whether the names that a request brings can be kept.

    Raises:
        ValueError: one sentence.
    """
    for name in _NAMES:
        value = getattr(obj, name, None)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                check_name(name, one)


def check_name(field: str, name: str) -> None:
    """Whether one of them can be kept.

    Raises:
        ValueError: one sentence.
    """
    if len(name) > MAX_NAME:
        raise ValueError(f"{field} has {len(name)} characters; at most {MAX_NAME} are taken.")


def _fit(original: Callable[..., Any], *args: Any, **named: Any) -> Any:
    try:
        return original(*args, **named)
    except MISFITS as error:
        raise ValueError(f"The request's fields do not fit together: {reason(error)}.") from error


def _check_embeds(given: Any) -> None:
    from sglang.srt.managers.embed_types import PositionalEmbeds

    if given is not None and not isinstance(given, PositionalEmbeds):
        raise ValueError("positional_embed_overrides takes tensors, which only the engine's Python interface has.")


def _check_labels(labels: Any) -> None:
    from sglang.srt.runtime_context import get_observability

    known = get_observability().tokenizer_metrics_allowed_custom_labels or ()
    if strange := [name for name in labels if name not in known]:
        raise ValueError(
            f"custom_labels names {say(strange[0])}, which is not among this server's: "
            f"{', '.join(known) or 'it has none (--tokenizer-metrics-allowed-custom-labels)'}."
        )


def _positions(obj: Any) -> Any:
    return getattr(getattr(obj, "positional_embed_overrides", None), "positions", None)


def _check_positions(name: str, positions: Any, prompt: int) -> None:
    if positions is not None and not isinstance(positions, list):
        raise ValueError(f"{name} takes a list of positions for each prompt, not {say(positions)}.")
    for one in positions or ():
        if type(one) is not int or not 0 <= one < prompt:
            raise ValueError(f"{name} takes positions in a prompt of {prompt} tokens, not {say(one)}.")


def _field_of(request: Any, error: Exception) -> str:
    """The field that a decoder's message points to: it counts them, the tag being the first."""
    where = re.search(r"\$\[(\d+)\]", str(error))
    if where is None:
        return "A field of the request"
    return msgspec.structs.fields(type(request))[int(where[1]) - 1].name


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
