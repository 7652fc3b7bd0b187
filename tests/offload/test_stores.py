"""Host memory and a folder: what is kept, what goes first, and what damage and a broken place come to."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from leankv_sglang.errors import LeanKVError
from leankv_sglang.offload import disk as disk_module
from leankv_sglang.offload.disk import UNFINISHED, DiskStore
from leankv_sglang.offload.host import ENTRY_BYTES, HostStore
from leankv_sglang.offload.page_object import PageName, Part, read_object
from leankv_sglang.offload.store_stack import StoreStack
from tests.offload.objects import IDENTITY, LAYERS, OTHER, name_of, object_of

BUDGET = 1 << 30


def objects(numbers: range) -> dict[PageName, bytes]:
    return {name_of(i): object_of(name_of(i)) for i in numbers}


def stack_over(store: DiskStore | None, host: int = BUDGET) -> StoreStack:
    return StoreStack(HostStore(host), store, lambda name, data: read_object(name, IDENTITY, LAYERS, data))


def test_host_memory_keeps_to_its_budget_and_drops_what_was_asked_for_longest_ago() -> None:
    given = {name: bytes(1000) for name in map(name_of, range(10))}
    host = HostStore(5 * (1000 + ENTRY_BYTES))
    host.put(dict(list(given.items())[:5]))
    assert host.get([name_of(0)]) == [bytes(1000)]
    host.put(dict(list(given.items())[5:7]))
    assert host.has([name_of(i) for i in range(7)]) == [True, False, False, True, True, True, True]
    assert host.counts.bytes == 5 * (1000 + ENTRY_BYTES) == host.budget
    assert (host.counts.objects, host.counts.dropped, host.counts.hits) == (5, 2, 1)
    host.put({name_of(20): bytes(host.budget)})
    assert host.has([name_of(20)]) == [False], "what is larger than all there is pushes nothing out"
    assert host.counts.objects == 5
    host.put({name_of(0): bytes(10)})
    host.remove([name_of(0), name_of(99)])
    assert host.counts.bytes == 4 * (1000 + ENTRY_BYTES)
    assert host.counts.damaged == 1


def test_a_folder_keeps_pages_for_who_comes_later(tmp_path: Path) -> None:
    first, given = DiskStore(tmp_path / "made" / "here", IDENTITY, BUDGET), objects(range(20))
    first.put(given)
    first.put(given)
    assert first.counts.puts == 20
    later = DiskStore(tmp_path / "made" / "here", IDENTITY, BUDGET)
    assert later.counts.objects == 20
    assert later.counts.bytes == sum(map(len, given.values()))
    names = [*given, name_of(99)]
    assert later.has(names) == [True] * 20 + [False]
    assert later.get(names) == [*given.values(), None]
    assert (later.counts.hits, later.counts.misses) == (20, 1)
    assert not any(DiskStore(tmp_path / "made" / "here", OTHER, BUDGET).has(names))


def test_what_was_read_longest_ago_is_dropped_first_whoever_read_it(tmp_path: Path) -> None:
    given = {name_of(i): bytes(1000) for i in range(20)}
    one, other = (DiskStore(tmp_path, IDENTITY, 20_000) for _ in range(2))
    one.put(given)
    for age, name in enumerate(given):
        os.utime(one._path(name), ns=(age, age))
    other.get([name_of(0)])
    one.put({name_of(50): bytes(1000)})
    assert one.has([name_of(i) for i in (0, 1, 2, 3, 19, 50)]) == [True, False, False, True, True, True]
    assert one.counts.bytes == 19_000
    assert one.counts.dropped == 2


def test_pages_of_others_count_and_go_too_and_so_does_what_a_killed_server_left(tmp_path: Path) -> None:
    other = DiskStore(tmp_path, OTHER, BUDGET)
    other.put({name_of(i): bytes(1000) for i in range(10)})
    left = other.folder / "00" / f"{1:032x}{UNFINISHED}"
    left.write_bytes(bytes(5000))
    foreign = [tmp_path / "readme.txt", tmp_path / "notes" / "index.page", tmp_path / OTHER.hex() / "00" / "my.page"]
    foreign += [tmp_path / OTHER.hex() / f"mine{UNFINISHED}", tmp_path / "a" / "00" / f"{1:064x}.f.page"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(bytes(50_000))
    for path in tmp_path.rglob("*"):
        os.utime(path, ns=(1, 1))
    mine = DiskStore(tmp_path, IDENTITY, 8000)
    assert mine.counts.bytes <= 8000
    mine.put({name_of(i): bytes(1000) for i in range(8)})
    assert mine.has([name_of(i) for i in range(8)]) == [False] + [True] * 7
    assert mine.counts.bytes <= 8000
    assert all(path.exists() for path in foreign), "what is no page of ours is left alone, and not counted"
    assert not left.exists()


DAMAGES = ("truncated", "bit-flipped", "foreign", "empty")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_objects_are_misses_counted_and_removed(damage: str, tmp_path: Path) -> None:
    count, source = 1000, random.Random(damage)
    store = DiskStore(tmp_path, IDENTITY, BUDGET)
    given = objects(range(count + 5))
    store.put(given)
    for i, (name, whole) in enumerate(given.items()):
        if i >= count:
            break
        at = source.randrange(len(whole))
        bad = {
            "truncated": whole[:at],
            "bit-flipped": whole[:at] + bytes([whole[at] ^ 1 << source.randrange(8)]) + whole[at + 1 :],
            "foreign": source.choice([object_of(name, identity=OTHER), given[name_of((i + 1) % count)]]),
            "empty": b"",
        }[damage]
        store._path(name).write_bytes(bad)
    stack = stack_over(store)
    found = stack.get(list(given))
    assert found[:count] == [None] * count
    assert all(found[count:])
    assert store.counts.damaged == count
    assert store.has(list(given)) == [False] * count + [True] * 5
    assert store.counts.objects == 5
    if damage == "bit-flipped":
        assert store.counts.bytes == sum(map(len, list(given.values())[count:]))
    stack.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_place_that_cannot_be_written_costs_hits_and_is_said_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = DiskStore(tmp_path, IDENTITY, BUDGET)
    store.put(objects(range(3)))

    def broken(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(disk_module.os, "replace", broken)
        store.put(objects(range(1000)))
    assert store.counts.failures == 997
    assert len(caplog.records) == 1
    assert os.strerror(number) in caplog.text
    assert not list(tmp_path.rglob(f"*{UNFINISHED}"))
    assert store.has([name_of(2), name_of(3)]) == [True, False]
    store.put(objects(range(1000)))
    assert all(store.has([name_of(i) for i in range(1000)])), "mended, it goes on"


def test_a_place_that_cannot_be_read_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DiskStore(tmp_path, IDENTITY, BUDGET)
    store.put(objects(range(3)))

    def broken(self: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert store.get([name_of(0), name_of(1)]) == [None, None]
    assert (store.counts.failures, store.counts.misses) == (2, 2)


def test_a_folder_that_cannot_be_made_is_one_sentence_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LeanKVError, match=r"--leankv-store file:.* cannot be written to \(Not a directory\)"):
        DiskStore(tmp_path / "file" / "folder", IDENTITY, BUDGET)


def test_servers_share_a_folder(tmp_path: Path) -> None:
    stores, given = [DiskStore(tmp_path, IDENTITY, 30_000) for _ in range(3)], objects(range(200))
    wrong: list[PageName] = []

    def live(store: DiskStore, seed: int) -> None:
        source = random.Random(seed)
        for _ in range(300):
            name = source.choice(list(given))
            store.put({name: given[name]})
            (data,) = store.get([name])
            if data not in (None, given[name]):
                wrong.append(name)

    threads = [threading.Thread(target=live, args=(store, i)) for i, store in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(store.counts.failures == 0 for store in stores)


def test_a_stack_reads_through_host_memory(tmp_path: Path) -> None:
    store, given = DiskStore(tmp_path, IDENTITY, BUDGET), objects(range(30))
    stack = stack_over(store)
    stack.write(lambda: given, 1, store)
    stack.finish()
    names = [*given, name_of(99)]
    assert stack.has(names) == [True] * 30 + [False]
    assert not any(stack.host.has(names))
    stack.fetch(names[:30])
    assert [one is not None for one in stack.get(names)] == [True] * 30 + [False]
    assert stack.host.has(names) == [True] * 30 + [False]
    read = store.counts.hits
    stack.get(names[:30])
    assert store.counts.hits == read, "the second time comes from host memory"
    stack.close()


def test_a_stack_leaves_out_what_a_slow_store_cannot_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leankv_sglang.offload.store_stack.MOST_WAITING", 100)
    store, gate = DiskStore(tmp_path, IDENTITY, BUDGET), threading.Event()
    stack = stack_over(store)

    def slowly() -> dict[PageName, bytes]:
        gate.wait(10)
        return objects(range(1))

    stack.write(slowly, 101, store)
    stack.write(lambda: objects(range(1, 2)), 1, store)
    assert stack.left_out == 1
    gate.set()
    stack.finish()
    stack.write(lambda: objects(range(2, 3)), 1, store)
    stack.finish()
    assert store.has([name_of(i) for i in range(3)]) == [True, False, True]
    stack.close()


def test_a_store_that_answers_too_late_is_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leankv_sglang.offload.store_stack.LONGEST_WAIT", 0.05)
    store, gate = DiskStore(tmp_path, IDENTITY, BUDGET), threading.Event()
    store.put(objects(range(2)))
    stack, get = stack_over(store), store.get
    monkeypatch.setattr(store, "get", lambda names: gate.wait(10) and get(names))
    assert stack.get([name_of(0), name_of(1)]) == [None, None]
    gate.set()
    stack.close()
    assert Part.FAR in name_of(0)


def test_a_store_that_hangs_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leankv_sglang.offload.store_stack.ASK_SECONDS", 0.05)
    store, gate = DiskStore(tmp_path, IDENTITY, BUDGET), threading.Event()
    store.put(objects(range(2)))
    stack, has, asked = stack_over(store), store.has, []

    def slowly(names: Sequence[PageName]) -> list[bool]:
        asked.append(names)
        gate.wait(10)
        return has(names)

    monkeypatch.setattr(store, "has", slowly)
    names = [name_of(0), name_of(1)]
    for _ in range(5):
        assert stack.has(names) == stack.has_in(store, names) == [False, False]
    assert (len(asked), store.counts.failures) == (1, 1)
    gate.set()
    deadline = time.monotonic() + 10
    while not all(stack.has(names)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stack.has(names) == [True, True], "mended, it goes on"
    stack.close()
