"""How many prompts and choices a request has, and whether its lists have an entry for each prompt."""

from __future__ import annotations

from typing import Any

from leankv_patches.request_ranges import say

MAX_CHOICES = 4096
"""Most answers of one request, over its prompts: each is a request of its own before anything else looks at it."""

_EACH = (
    *("sampling_params", "rid", "lora_path", "extra_key", "cache_salt", "watermark", "custom_logit_processor"),
    *("return_logprob", "logprob_start_len", "top_logprobs_num", "return_sampling_mask", "sampling_logprobs_mode"),
    *("return_hidden_states",),
)
# Of these a plain list is one for all prompts.
_NESTED = ("token_ids_logprob", "token_indices_to_pool")


def check_entries(obj: Any) -> None:
    """A request as it came, before it is taken apart.

    Raises:
        ValueError: one sentence saying of what it has too many or too few.
    """
    prompts = prompts_of(obj)
    choices = max(_choices(obj.sampling_params), default=1)
    if prompts is not None and prompts * choices > MAX_CHOICES:
        raise ValueError(
            f"This asks for {prompts * choices} answers, {choices} for each of {prompts} prompts; a request gets"
            f" {MAX_CHOICES}."
        )
    if prompts is None:
        _check_single(obj)
        return
    for name in (*_EACH, *_NESTED):
        value = getattr(obj, name, None)
        if not isinstance(value, list) or (name in _NESTED and not (value and isinstance(value[0], list))):
            continue
        if len(value) != prompts:
            raise ValueError(f"{name} has {_count(len(value), 'entry', 'entries')} for {_count(prompts, 'prompt')}.")


def _check_single(obj: Any) -> None:
    """A lone prompt, of which each field has one value; SGLang would read a list as that value."""
    if getattr(obj, "text", None) is None and getattr(obj, "input_ids", None) is None:
        return  # embeddings, of one prompt or of several
    for name in _EACH:
        if name != "rid" and isinstance(getattr(obj, name, None), list):
            raise ValueError(f"{name} is a list; for a single prompt it is that prompt's value alone.")


def prompts_of(obj: Any) -> int | None:
    """How many prompts a request lists, None where it brings a single one."""
    given = next((value for name in ("text", "input_ids") if (value := getattr(obj, name, None)) is not None), None)
    if not isinstance(given, list) or (given and isinstance(given[0], int)):
        return None
    return len(given)


def _choices(params: Any) -> list[int]:
    """``n`` of each prompt's parameters.

    Raises:
        ValueError: one sentence, where one is none.
    """
    found = []
    for one in params if isinstance(params, list) else [params]:
        if one is not None and not isinstance(one, dict):
            raise ValueError(f"sampling_params takes an object for each prompt, not {say(one)}.")
        n = 1 if one is None else one.get("n", 1)
        if one and n is None:
            del one["n"]
            n = 1
        if type(n) is not int or not 1 <= n <= MAX_CHOICES:
            raise ValueError(f"n is a whole number from 1 to {MAX_CHOICES}, not {say(n)}.")
        found.append(n)
    if not found:
        raise ValueError("sampling_params takes an object for each prompt, not an empty list.")
    return found


def _count(number: int, one: str, more: str | None = None) -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"
