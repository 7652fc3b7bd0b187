"""The tree is read as it is, also while it changes, and reading changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

from leankv_kernels.layout import LEVEL_BASE, LEVEL_FAR
from leankv_sglang.config import CONFIG_ENV, LeanKVConfig
from leankv_sglang.kvcache.tree.paged_component import FULL
from leankv_sglang.observability.live.scheduler import tree_reader
from leankv_sglang.observability.live.scheduler.head_reader import read_heads
from leankv_sglang.observability.live.scheduler.tree_reader import TreeReader
from leankv_sglang.observability.live.tree_rows import NODE_ROW, ROOT
from tests.kvcache.tree.test_random_life import step
from tests.kvcache.tree.world import PAGE, World


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A tree in the middle of its life, trimmed and demoted here and there."""
    set_global_server_args_for_scheduler(ServerArgs(model_path="dummy", page_size=PAGE))
    monkeypatch.setenv(CONFIG_ENV, LeanKVConfig(demote=True, match="relaxed").to_json())
    world = World(pages=40, seed=5)
    for _ in range(150):
        step(world)
    world.pool.settle()
    return world


def read(world: World, between: Any = None, text: bool = False, host: Any = None) -> tuple[np.ndarray, list[dict]]:
    bodies: list[dict[str, Any]] = []
    reader = TreeReader(world.cache, bodies.append, lambda salt: f"salt {salt}", text, host)
    for _ in reader.read():
        if between is not None:
            between()
    return np.concatenate([np.zeros(0, NODE_ROW), *(np.frombuffer(b["rows"], NODE_ROW) for b in bodies)]), bodies


def nodes_of(world: World) -> dict[int, Any]:
    return {n.id: n for n in world.cache.paged._node_of.values()}


def test_rows_say_what_the_tree_holds(world: World) -> None:
    rows, bodies = read(world)
    nodes, component, pool = nodes_of(world), world.cache.paged, world.pool
    assert sorted(rows["node"].tolist()) == sorted(nodes)
    assert len(nodes) > 5
    for row in rows:
        node = nodes[int(row["node"])]
        pages = component.pages(node)
        root = node.parent is world.cache.tree_core.root_node
        assert row["parent"] == (ROOT if root else node.parent.id)
        assert row["tokens"] == len(node.key)
        assert row["bytes"] == pool.bytes_of_pages(pages)
        assert row["trimmed"] == (pool.ledger.level[pages] == LEVEL_FAR).sum()
        assert row["demoted"] == (pool.ledger.level[pages] == LEVEL_BASE).sum()
        assert row["locked"] == bool(node.component_data[FULL].lock_ref)
        assert (row["hits"], row["used"]) == (node.hit_count, node.last_access_time)
    assert rows["trimmed"].any()
    tops = {str(n) for n, above in zip(rows["node"].tolist(), rows["parent"].tolist(), strict=True) if above == ROOT}
    assert set().union(*(body["accuracy"] for body in bodies)) == tops


def test_parts_are_of_so_many_nodes_and_none_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, bodies = read(world)
    monkeypatch.setattr(tree_reader, "NODES_A_PART", 3)
    rows, parts = read(world)
    assert (rows == whole).all()
    assert [len(body["rows"]) // NODE_ROW.itemsize for body in parts[:-1]] == [3] * (len(parts) - 1)
    assert len(parts) > len(bodies)


class OneByOne:
    """Pieces of one node."""

    size = 1

    def __init__(self, _size: int) -> None:
        pass

    def begin(self) -> None:
        pass

    end = begin


def test_parents_come_first_whatever_happens_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_reader, "PieceSize", OneByOne)
    for _ in range(40):
        rows, _ = read(world, between=lambda: step(world))
        seen = {ROOT}
        for node, above in zip(rows["node"].tolist(), rows["parent"].tolist(), strict=True):
            assert above in seen
            assert node not in seen
            seen.add(node)
        assert (rows["tokens"] > 0).all()
        world.check()


def test_reading_and_looking_up_change_nothing(world: World) -> None:
    from array import array

    from sglang.srt.mem_cache.radix_cache import RadixKey

    def state() -> Any:
        nodes = nodes_of(world)
        of_nodes = {i: (n.last_access_time, n.hit_count, n.component_data[FULL].lock_ref) for i, n in nodes.items()}
        return of_nodes, world.pool.ledger.price.tolist(), world.cache.evictable_size()

    before = state()
    read(world)
    for node in nodes_of(world).values():
        key = array("q", node.key.token_ids[: PAGE + 3])
        world.cache.paged.look_up(RadixKey(key, None))
    assert state() == before


def test_digests_tell_prefixes_apart_and_stay(world: World) -> None:
    rows, _ = read(world)
    again, _ = read(world)
    assert len(set(rows["digest"].tolist())) == len(rows)
    assert dict(zip(rows["node"].tolist(), rows["digest"].tolist(), strict=True)) == dict(
        zip(again["node"].tolist(), again["digest"].tolist(), strict=True)
    )


def test_tokens_are_told_only_where_text_may_be_shown(world: World) -> None:
    _, hidden = read(world)
    assert all(set(body) == {"rows", "accuracy"} for body in hidden)
    rows, shown = read(world, text=True)
    told = {int(node): tokens for body in shown for node, tokens in body["text"].items()}
    nodes = nodes_of(world)
    assert set(told) == set(rows["node"].tolist())
    assert all(nodes[i].key.token_ids[: len(t)].tolist() == t for i, t in told.items())


def test_a_flush_ends_the_reading(world: World) -> None:
    reader = TreeReader(world.cache, lambda _body: None, str, False)
    task = reader.read()
    next(task, None)
    for req in list(world.running):
        world.drop(req)
    world.cache.reset()
    assert list(task) == []


def test_pages_in_host_memory_are_counted(world: World) -> None:
    for node in nodes_of(world).values():
        node.hash_value = [f"{node.id}.{i}" for i in range(len(world.cache.paged.pages(node)))]
    rows, _ = read(world, host=lambda keys: [key.endswith(".0") for key in keys])
    assert (rows["host"] == 1).all()


def test_heads_add_up_to_what_the_store_counts(world: World) -> None:
    world.pool.drain()
    world.pool.settle()
    found: list[dict[str, Any]] = []
    for _ in read_heads(world.pool, found.append):
        pass
    counts = np.frombuffer(found[0]["counts"], np.int64).reshape(found[0]["shape"])
    assert (counts[..., 0] == world.pool.store.usage_by_head().numpy()).all()
    usage = world.pool.store.usage()
    tiers = [usage.high_tokens, usage.mid_tokens, usage.low_tokens, usage.pruned_tokens]
    assert counts[..., 1:].sum((0, 1)).tolist() == tiers
