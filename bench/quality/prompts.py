"""Token ids of prompts, cut where a context ends and the question begins; needles buried in running text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from bench.quality.harness import Bench

_MARK = "\u2063MARK\u2063"
REACH = 120
"""Tokens within which a sentence's end is looked for."""


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a text as it stands, nothing added."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def chat(tokenizer: Any, before: str, after: str = "") -> tuple[list[int], list[int]]:
    """A user's message in the model's chat form, up to where the answer begins.

    Returns:
        tokens up to the end of ``before``, and tokens of ``after`` and what follows it. Where ``before`` is empty, all
        tokens are in the second.
    """
    head, tail = _render(tokenizer, [{"role": "user", "content": before + _MARK + after}])
    if not before:
        return [], ids_of(tokenizer, head + tail)
    return ids_of(tokenizer, head), ids_of(tokenizer, tail)


def next_turn(tokenizer: Any, first: str, second: str) -> list[int]:
    """What comes between a first answer and the second: the end of the one turn and the whole next question."""
    messages = [{"role": "user", "content": first}, {"role": "assistant", "content": _MARK}]
    return ids_of(tokenizer, _render(tokenizer, [*messages, {"role": "user", "content": second}])[1])


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[str, str]:
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    head, _, tail = text.partition(_MARK)
    return head, tail


def bury(bench: Bench, length: int, needles: Sequence[tuple[float, str]], rng: random.Random) -> list[int]:
    """A passage of the bench's text, ``length`` tokens with the needles, each behind a sentence's end near its depth.

    Args:
        needles: depth (0 to 1) and sentence, by depth.

    Raises:
        ValueError: when the text is too short.
    """
    tokenizer, ids = bench.tokenizer, bench.text_ids()
    sentences = [(depth, ids_of(tokenizer, " " + text + "\n")) for depth, text in needles]
    room = length - sum(len(tokens) for _, tokens in sentences)
    if not 0 < room <= len(ids):
        raise ValueError(f"no context of {length} tokens can be made of a text of {len(ids)}")
    start = rng.randrange(len(ids) - room + 1)
    hay = ids[start : start + room]
    out: list[int] = []
    last = 0
    for depth, tokens in sentences:
        at = max(_sentence_end(tokenizer, hay, round(depth * room)), last)
        out += hay[last:at] + tokens
        last = at
    return out + hay[last:]


def _sentence_end(tokenizer: Any, hay: list[int], near: int) -> int:
    """The first place from ``near`` on that is behind a full stop or a line's end."""
    for at in range(near, min(near + REACH, len(hay))):
        if at == 0 or tokenizer.decode(hay[at - 1]).strip(" ").endswith((".", "\n")):
            return at
    return near
