"""What the HTTP process and the schedulers say to each other, over SGLang's own sockets."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.io_struct import BaseReq

FIGURES, TREE, HEADS, END = "figures", "tree", "heads", "end"
"""What a part of an answer holds; the last one says that its sender is done with what was asked."""


class LeanKVAsk(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """What is asked of every scheduler that answers: a look at the cache, or a probe.

    Args:
        ask: number of the question, unique in the process that asks.
        figures: whether figures, history and requests are asked for.
        after: history is wanted from after this moment on, seconds since 1970.
        tree: whether every node is asked for.
        heads: whether bytes and tokens by layer and KV head are.
        probe: tokens of a prompt, int64, whose hit is asked for; None if not.
        extra_key, cache_salt: of that prompt.
    """

    ask: int
    figures: bool = False
    after: float = 0.0
    tree: bool = False
    heads: bool = False
    probe: bytes | None = None
    extra_key: str | None = None
    cache_salt: str | None = None


class LeanKVPart(BaseReq, kw_only=True):  # type: ignore[call-arg]
    """A part of the answer of one scheduler; ``kind`` says which, or of what it is the end."""

    ask: int
    rank: int
    kind: str
    body: dict[str, Any]


MESSAGES = (LeanKVAsk, LeanKVPart)
