"""The one contract of places that keep page objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from leankv_sglang.offload.page_object import PageName


@dataclass
class StoreCounts:
    """What a store holds, and what has happened to it since the start."""

    bytes: int = 0
    objects: int = 0
    puts: int = 0
    hits: int = 0
    """Objects that were read."""
    misses: int = 0
    """Objects that were gone when they were to be read; what a look at names did not find is never read."""
    damaged: int = 0
    """Objects that were read and not what they should be; each was removed."""
    dropped: int = 0
    """Objects that made room for others."""
    failures: int = 0
    """Operations that the place itself failed at."""


class PageStore(Protocol):
    """Keeps page objects, each under its name, as long as there is room; any thread may call it.

    Nothing in it raises for what is wrong with the place: that costs hits, is counted and is said in the log.
    """

    name: str
    budget: int
    """Bytes."""
    counts: StoreCounts

    def has(self, names: Sequence[PageName]) -> list[bool]:
        """Which of them are there; may be wrong by the time they are got."""

    def get(self, names: Sequence[PageName]) -> list[bytes | None]:
        """The objects, None for those that are not there. They are not checked."""

    def put(self, objects: Mapping[PageName, bytes]) -> None:
        """Keep objects. One that is there already is the same."""

    def remove(self, names: Sequence[PageName]) -> None:
        """Forget objects that are damaged."""

    def close(self) -> None:
        """Finish what is under way."""
