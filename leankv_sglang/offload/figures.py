"""What is beyond the device, and what has left it and come back: for ``/server_info`` and Prometheus alike."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from leankv_sglang.offload.linker import LeanKVLinker

_linker: LeanKVLinker | None = None


def report(linker: LeanKVLinker) -> None:
    """Have this linker's figures reported by this process."""
    global _linker
    _linker = linker


def offload_figures() -> dict[str, Any]:
    """Pages and bytes that left and came back, and of each place what is there and what happened; empty where pages
    are kept nowhere beyond the device."""
    if _linker is None:
        return {}
    stack = _linker.stack
    places = [place for place in (stack.host, stack.store) if place is not None]
    return {
        **asdict(_linker.counts),
        "objects_left_out": stack.left_out,
        "store_bytes_per_second": _linker.rule.bytes_per_second,
        "prefill_tokens_per_second": _linker.rule.tokens_per_second,
        "places": {place.name: {"budget": place.budget, **asdict(place.counts)} for place in places},
    }
