"""What a prompt would hit, read off the tree without touching it: no lock, no split, no change of last use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from sglang.srt.mem_cache.unified_cache.components import ComponentType
from sglang.srt.mem_cache.unified_cache.components.base import ComponentData

from leankv_sglang.kvcache.ledger import Pages


class Step(NamedTuple):
    """A node on a key's path, and how many of its tokens the key shares: whole pages, at least one."""

    node: Any
    tokens: int


@dataclass(frozen=True)
class Lookup:
    """What the tree holds of a key.

    Args:
        hit: tokens that a request with this key is given.
        legal: tokens as far as pages alone allow it; sliding windows and recurrent states may end a hit earlier.
        pages: of all that is held of the key, int64 ``[n]``.
        last: the node in which the hit ends, None without one.
    """

    hit: int
    legal: int
    pages: Pages
    last: Any


def path_of(core: Any, key: Any, page_size: int) -> list[Step]:
    """The nodes that a page-aligned ``RadixKey`` runs through, from the root on, as far as the device holds them."""
    node, offset, steps = core.root_node, 0, []
    while offset < len(key):
        child = node.children.get(key.child_key_at(offset, page_size))
        if child is None or child.evicted:
            break
        tokens = child.key.match_at(key, offset, page_size=page_size)
        steps.append(Step(child, tokens))
        offset += tokens
        if tokens < len(child.key):
            break
        node = child
    return steps


def valid_end(components: Any, steps: list[Step], limit: int) -> int:
    """The most tokens, up to ``limit``, after which every kind of layer has what a hit needs."""
    validators = [component.create_match_validator(match_device_only=True) for component in components]
    at = best = 0
    for node, tokens in steps:
        if (taken := min(tokens, limit - at)) <= 0:
            break
        at += taken
        seen = node if taken == len(node.key) else _Beginning(node, taken)
        # Each of them counts along, so all are asked.
        verdicts = [validator(seen) for validator in validators]
        if all(verdicts):
            best = at
    return best


def pages_of(steps: list[Step], pages: Any, page_size: int) -> Pages:
    """Logical pages of a path, int64 ``[n]``; ``pages`` gives those of a node."""
    parts = [pages(node)[: tokens // page_size] for node, tokens in steps]
    return np.concatenate([np.empty(0, np.int64), *parts])


class _Beginning:
    """The first tokens of a node, as SGLang's split would leave them: a recurrent state is of a node's end alone."""

    evicted = backuped = False

    def __init__(self, node: Any, tokens: int) -> None:
        self.key = range(tokens)
        self.component_data = list(node.component_data)
        self.component_data[ComponentType.MAMBA] = ComponentData()
