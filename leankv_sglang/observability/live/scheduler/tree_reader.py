"""Every node of the radix tree, a few at a time, while the tree goes on changing.

What is read is true of the moment it is read at. A node that is split meanwhile is met as its new parent, which the
walk then takes in its place; one that is evicted before it is met is left out.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from leankv_kernels.layout import LEVEL_BASE, LEVEL_NEAR
from leankv_sglang.kvcache.tree.paged_component import FULL
from leankv_sglang.observability.live.scheduler.slices import PieceSize
from leankv_sglang.observability.live.tree_rows import NODE_ROW, ROOT

TEXT_TOKENS = 24
"""Of a node's first tokens, those that are shown where text may be."""
_SECRET = os.urandom(32)
"""Of this process: without it nobody can look for a prompt by its digest."""
_HOST_PAGES = 256

NODES_A_PART = 32
"""Of a message."""
_NAMES = NODE_ROW.names or ()

Emit = Callable[[dict[str, Any]], None]
_Read = tuple[dict[str, Any], str | None, list[int] | None]
"""A node's row by name, its accuracy if it is below the root, and its first tokens where they may be told."""
HostHas = Callable[[list[str]], list[bool]]


class TreeReader:
    """Reads a tree once.

    Args:
        cache: our radix cache.
        emit: takes the parts that are read, as messages carry them: ``rows`` of :data:`NODE_ROW`, ``accuracy`` by node
            id for those below the root, and ``text``, the first tokens by node id, where that may be shown.
        accuracy: of a ``cache_salt``, in words.
        show_text: whether tokens may be told.
        host_has: which keys of pages host memory has; None without any.
        has_store: whether there is a store, to which the tree gives its nodes.
    """

    def __init__(
        self,
        cache: Any,
        emit: Emit,
        accuracy: Callable[[str | None], str],
        show_text: bool,
        host_has: HostHas | None = None,
        has_store: bool = False,
    ) -> None:
        self._component, self._emit, self._accuracy = cache.paged, emit, accuracy
        self._show_text, self._host_has, self._has_store = show_text, host_has, has_store
        self._core, self._root = cache.tree_core, cache.tree_core.root_node
        self._digests: dict[int, bytes] = {}

    def read(self) -> Iterator[None]:
        """The task."""
        piece, found = PieceSize(2), list[_Read]()
        left = piece.size
        piece.begin()
        for node in self._nodes():
            if self._core.root_node is not self._root:
                return  # flushed meanwhile
            found.append(self._read(node))
            left -= 1
            if left and len(found) < NODES_A_PART:
                continue
            if not left:
                piece.end()
            yield
            if len(found) >= NODES_A_PART:
                self._tell(found)
                found = []
                yield
            left = piece.size
            piece.begin()
        self._tell(found)

    def _nodes(self) -> Iterator[Any]:
        """All nodes, each after the one above it."""
        below: list[tuple[Any, Iterator[Any]]] = [(self._root, iter(list(self._root.children.values())))]
        while below:
            parent, children = below[-1]
            node = next(children, None)
            if node is None:
                below.pop()
                continue
            node = self._now(node, parent)
            if node is not None:
                yield node
                below.append((node, iter(list(node.children.values()))))

    def _now(self, node: Any, parent: Any) -> Any:
        """The node that now comes after ``parent`` on the way to ``node``; None where that has gone."""
        if node.component_data[FULL].value is None:
            return None
        while node is not None and node.parent is not parent:
            node = node.parent
        return node

    def _read(self, node: Any) -> _Read:
        """What is told of a node."""
        pages, top = self._component.pages(node), node.parent is self._root
        level = self._component.ledger.level[pages]
        row = {
            "node": node.id,
            "parent": ROOT if top else node.parent.id,
            "tokens": len(pages) * self._component.page_size,
            "pages": len(pages),
            "bytes": self._component.pool.bytes_of_pages(pages),
            "trimmed": np.count_nonzero((level < LEVEL_NEAR) & (level > LEVEL_BASE)),
            "demoted": np.count_nonzero(level == LEVEL_BASE),
            "hits": node.hit_count,
            "locked": self._component.is_locked(node),
            "used": node.last_access_time,
            "digest": struct.unpack("<Q", self._digest(node))[0],
            "stored": self._has_store and node.external_cache_stored,
            "host": self._in_host(node) if self._host_has is not None else 0,
        }
        accuracy = self._accuracy(node.key.cache_salt) if top else None
        return row, accuracy, node.key.token_ids[:TEXT_TOKENS].tolist() if self._show_text else None

    def _tell(self, found: list[_Read]) -> None:
        if not found:
            return
        rows = np.array([tuple(row[name] for name in _NAMES) for row, _, _ in found], NODE_ROW)
        body: dict[str, Any] = {"rows": rows.tobytes()}
        body["accuracy"] = {str(row["node"]): words for row, words, _ in found if words is not None}
        if self._show_text:
            body["text"] = {str(row["node"]): tokens for row, _, tokens in found}
        self._emit(body)

    def _digest(self, node: Any) -> bytes:
        above = self._digests.get(node.parent.id, b"")
        namespace = repr((node.key.extra_key, node.key.cache_salt)).encode() if node.parent is self._root else b""
        first = node.key.token_ids[: self._component.page_size].tobytes()
        digest = hashlib.blake2b(above + namespace + first, digest_size=8, key=_SECRET).digest()
        self._digests[node.id] = digest
        return digest

    def _in_host(self, node: Any) -> int:
        """Pages of a node that host memory has too, by its first pages where they are many."""
        keys = (node.hash_value or [])[:_HOST_PAGES]
        if not keys:
            return 0
        assert self._host_has is not None
        held = sum(self._host_has(keys)) / len(keys)
        return round(held * len(self._component.pages(node)))
