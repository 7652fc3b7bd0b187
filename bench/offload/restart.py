"""A server is killed and started again on the same folder: what its prompts find, and whether answers are the same."""

from __future__ import annotations

import os
import signal
import tempfile
from typing import Any

from tqdm import tqdm

from bench.common.data import random_prompts
from bench.common.server import Completion, Server, serve
from bench.offload.first_token import settled

PAGE, NEW_TOKENS = 128, 32
PRUNED = ("--leankv-alpha-low", "0.3", "--leankv-alpha-high", "1.5")
LARGE, SMALL = ("--max-total-tokens", "65536"), ("--max-total-tokens", "6144")
SYSTEMS: dict[str, tuple[str, ...]] = {
    "as it starts": LARGE,
    "pruning, no profile": (*LARGE, *PRUNED),
    "as it starts, small pool": SMALL,
    "pruning, small pool": (*SMALL, *PRUNED),
}
"""In a small pool pages are trimmed and dropped before the server is killed, and again afterwards."""


def answers(server: Server, prompts: list[list[int]], name: str) -> list[Completion]:
    """One after the other."""
    return [server.generate(prompt, NEW_TOKENS) for prompt in tqdm(prompts, desc=name, unit="prompt")]


def restart_row(name: str, flags: tuple[str, ...], prompts: list[list[int]]) -> dict[str, Any]:
    """One system: asked, killed, asked again."""
    with tempfile.TemporaryDirectory() as folder:
        common = (*flags, "--max-running-requests", "2", "--leankv-store", f"file:{folder}", "--leankv-load", "always")
        with serve(*common) as server:
            first = answers(server, prompts, f"{name}, first")
            settled(server, "disk")
            trimmed = server.info()["leankv"]["pages_trimmed"]
            os.killpg(server.process.pid, signal.SIGKILL)
        with serve(*common) as server:
            again = answers(server, prompts, f"{name}, again")
            figures = server.info()["leankv"]
    pairs = list(zip(prompts, first, again, strict=True))
    return {
        "system": name,
        "prompts": len(prompts),
        "misses at first": sum(not one.cached for one in first),
        "hits of all full pages": sum(hit.cached == (len(p) - 1) // PAGE * PAGE for p, _, hit in pairs),
        "equal": sum((hit.tokens, hit.logprobs) == (miss.tokens, miss.logprobs) for _, miss, hit in pairs),
        "pages trimmed before": trimmed,
        "pages trimmed after": figures["pages_trimmed"],
        "pages from the store": figures["offload"]["pages_from_store"],
    }


def restart_rows(prompts: int, low: int, high: int) -> list[dict[str, Any]]:
    """A row for each system.

    Args:
        prompts: how many.
        low, high: tokens of the shortest and the longest.
    """
    given = random_prompts(prompts, low, high, 31)
    return [restart_row(name, flags, given) for name, flags in SYSTEMS.items()]
