"""What a route's model of a body says of one that it cannot read, in one sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from leankv_patches.request_ranges import say

MOST_FIELDS = 2
"""Fields that are named; with a request that is no such thing at all, each of its fields is wrong."""
_TYPES = {"str", "int", "float", "bool", "dict", "list", "none", "constrained-str", "constrained-int", "any"}
_BODY = "The body"


def schema_sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for the errors of pydantic or fastapi: what is wrong with the first fields, and what they take."""
    fields: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for error in errors:
        # A struct given as JSON is none yet; what its fields lack is told by the next.
        if error.get("type") != "is_instance_of" or len(errors) == 1:
            path = _path(error.get("loc", ()))
            fields.setdefault(re.split(r"[.\[]", path)[0], []).append((path, error))
    told = [_of_field(found) for found in [*fields.values()][:MOST_FIELDS]]
    return f"{'; '.join(told) or 'The request cannot be read'}."


def _path(location: Sequence[Any]) -> str:
    """A field as JSON knows it, without the names of the types that were tried."""
    path = ""
    for part in location[1:] if location and location[0] in ("body", "query", "path", "header") else location:
        if isinstance(part, int):
            path += f"[{part}]" if path else ""
        elif re.fullmatch(r"[\w-]+", part) and part not in _TYPES and not part[0].isupper():
            path += f".{part}" if path else part
    return say(path + " ").rstrip() if len(path) > 80 else path


def _of_field(found: list[tuple[str, Mapping[str, Any]]]) -> str:
    """Where most attempts to read a field ended, and what each of them wanted there."""
    ends = Counter(path for path, _ in found)
    place = max(ends, key=lambda path: (ends[path], len(path)))
    wanted: list[str] = []
    for path, error in found:
        if path == place and (words := _words(str(error.get("msg", "")), error)) not in wanted:
            wanted.append(words)
    takes = [words.removeprefix("takes ") for words in wanted if words.startswith("takes ")]
    others = [words for words in wanted if not words.startswith("takes ")]
    return f"{place or _BODY} {'takes ' + ' or '.join(takes) if takes else others[0]}"


def _words(message: str, error: Mapping[str, Any]) -> str:
    """A message as the rest of a sentence that began with the field."""
    kind = error.get("type")
    if kind == "missing":
        return "is missing"
    if kind == "json_invalid":
        return f"is not JSON: {say(dict(error.get('ctx') or {}).get('error', message) or message)}"
    if kind == "extra_forbidden":
        return "is not known here"
    if message.startswith("Input should be "):
        # What comes behind says what was given, which the client knows.
        wanted = message.removeprefix("Input should be ").partition(", ")[0] if "'" not in message else message[16:]
        return f"takes {wanted.replace('valid ', '', 1).replace('a integer', 'an integer')}"
    told = message.removeprefix("Value error, ").strip()
    return f"does not fit: {say(' '.join(told.split()) + ' ').strip().rstrip('.')}"
