"""A probe's answer in words."""

from __future__ import annotations

from typing import Any

from leankv_sglang.observability.live.page.words import say_bytes, say_count, say_seconds

REASONS = {
    "whole_prompt": "that is all a hit can have: the last token is computed in any case, and hits end with pages",
    "shorter_than_a_page": "hits end with pages, and this prompt has no whole one before its last token",
    "not_cached": "what follows is not cached",
    "trimmed": "what follows is cached, but its near parts were cut, and a hit may not end where they are missing",
    "demoted": "what follows was demoted, and this server's hits read no demoted pages (--leankv-match strict)",
    "window": "what follows is cached, but not what its sliding windows or recurrent states would need",
    "other_accuracy": "what follows is cached at another accuracy only",
    "other_salt": "what follows is cached under another salt, extra key or adapter only",
}
"""Why a hit ends, by ``ends_because``."""
_PLACES = {"device": "on the device", "host": "from host memory", "storage": "from the store"}


def sentence(found: dict[str, Any]) -> str:
    """What a probe found, in two or three sentences."""
    places = [f"{say_count(n)} {_PLACES[place]}" for place, n in found["hit_from"].items() if n]
    where = f" ({', '.join(places)})" if len(places) > 1 or found["hit_from"]["device"] != found["hit_tokens"] else ""
    hit = f"{say_count(found['hit_tokens'])} of {say_count(found['prompt_tokens'])} tokens would hit{where}"
    if found["bytes"]:
        pages = sum(found["pages"].values())
        hit += f", {say_bytes(found['bytes'])} in {say_count(pages)} page{'s' if pages > 1 else ''}"
    to_compute = found["to_compute"]
    rest = f"{say_count(to_compute['tokens'])} would be computed"
    if to_compute["seconds"] is not None:
        rest += f", in about {say_seconds(to_compute['seconds'])}"
    said = f"{hit}; {rest}. The hit ends there since {REASONS[found['ends_because']]}."
    longer = [other for other in found["elsewhere"] if other["hit_tokens"] > found["hit_tokens"]]
    for other in longer:
        whose = "" if other["same_salt"] else " under another salt"
        said += f" At accuracy {other['accuracy']}{whose} {say_count(other['hit_tokens'])} would."
    return said
