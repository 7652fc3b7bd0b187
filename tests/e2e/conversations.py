"""Conversations in streaming sessions, each turn of which is held to its miss."""

from __future__ import annotations

from typing import Any

import requests

from bench.common.server import Completion, Server
from tests.e2e.hits import assert_same


class Conversation:
    """A streaming session, and what was said in it."""

    def __init__(self, server: Server) -> None:
        self.server, self.history = server, list[int]()
        self.turns: list[tuple[list[int], Completion]] = []
        self.id = server.post("/open_session", {"capacity_of_str_len": 100_000, "streaming": True})

    def say(self, tokens: list[int], new_tokens: int, **fields: Any) -> Completion:
        asked = {"session_params": {"id": self.id}, **fields}
        answer = self.server.generate(tokens, new_tokens, fields=asked)
        self.history += tokens
        self.turns.append((list(self.history), answer))
        self.history += answer.tokens
        return answer

    def close(self) -> None:
        requests.post(self.server.url + "/close_session", json={"session_id": self.id}, timeout=60).raise_for_status()


def assert_turns_equal_misses(server: Server, conversations: list[Conversation]) -> None:
    """Every turn of closed conversations again, alone and on an empty cache; afterwards nothing is held."""
    for conversation in conversations:
        for prompt, answer in conversation.turns:
            server.flush()
            assert_same(answer, server.generate(prompt, len(answer.tokens)))
    server.flush()
    pages = server.info()["leankv"]
    assert pages["units_free"] == pages["units_total"]
    assert pages["blocks_free"] == pages["blocks_total"]
