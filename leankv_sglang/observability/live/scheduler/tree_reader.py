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
from leankv_sglang.kvcache.sizing import PAGE_TABLE_ENTRY
from leankv_sglang.kvcache.tree.paged_component import FULL
from leankv_sglang.observability.live.scheduler.slices import PieceSize
from leankv_sglang.observability.live.tree_rows import NODE_ROW, ROOT

TEXT_TOKENS = 24
"""Of a node's first tokens, those that are shown where text may be."""
_SECRET = os.urandom(32)
"""Of this process: without it nobody can look for a prompt by its digest."""
_HOST_PAGES = 256

Emit = Callable[[dict[str, Any]], None]
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
        piece, found = PieceSize(4), list[Any]()
        piece.begin()
        for node in self._nodes():
            if self._core.root_node is not self._root:
                return  # flushed meanwhile
            found.append(node)
            if len(found) >= piece.size:
                self._tell(found)
                piece.end()
                yield
                found = []
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

    def _tell(self, nodes: list[Any]) -> None:
        nodes = [node for node in nodes if node.component_data[FULL].value is not None]
        if not nodes:
            return
        rows = np.zeros(len(nodes), NODE_ROW)
        pages = [self._component.pages(node) for node in nodes]
        count = np.array([len(one) for one in pages])
        owner = np.repeat(np.arange(len(nodes)), count)
        every = np.concatenate(pages)
        pool, ledger = self._component.pool, self._component.ledger
        blocks, level = ledger.blocks_held(every), ledger.level[every]
        nbytes = blocks * pool.layout.block_bytes + (blocks > 0) * pool.layer_num * PAGE_TABLE_ENTRY

        def total(of_page: Any) -> Any:
            return np.bincount(owner, of_page, len(nodes))

        root = self._root
        rows["node"] = [node.id for node in nodes]
        rows["parent"] = [ROOT if node.parent is root else node.parent.id for node in nodes]
        rows["tokens"], rows["pages"] = count * self._component.page_size, count
        rows["bytes"], rows["trimmed"] = total(nbytes), total((level < LEVEL_NEAR) & (level > LEVEL_BASE))
        rows["demoted"] = total(level == LEVEL_BASE)
        rows["hits"] = [node.hit_count for node in nodes]
        rows["locked"] = [self._component.is_locked(node) for node in nodes]
        rows["used"] = [node.last_access_time for node in nodes]
        rows["digest"] = [struct.unpack("<Q", self._digest(node))[0] for node in nodes]
        if self._has_store:
            rows["stored"] = [node.external_cache_stored for node in nodes]
        if self._host_has is not None:
            rows["host"] = [self._in_host(node) for node in nodes]
        body: dict[str, Any] = {"rows": rows.tobytes()}
        body["accuracy"] = {str(n.id): self._accuracy(n.key.cache_salt) for n in nodes if n.parent is root}
        if self._show_text:
            body["text"] = {str(node.id): node.key.token_ids[:TEXT_TOKENS].tolist() for node in nodes}
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
