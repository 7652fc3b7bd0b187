"""Page objects as files of a folder, which servers may share and which outlives them.

An object is written under a name of its own and then renamed, so that nobody ever sees half of one; what a power cut
tears nevertheless is told by its checksum when it is read. Files are dropped that were read longest ago, by the times
that reading leaves on them, whichever server did.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from leankv_sglang.errors import LeanKVError
from leankv_sglang.offload.page_object import PageName, Part
from leankv_sglang.offload.page_store import StoreCounts

logger = logging.getLogger(__name__)

SUFFIX, UNFINISHED = ".page", ".unfinished"
ROOM = 0.95
"""Of the budget, what is left of a folder once it was over it."""
_IDENTITY, _PART = re.compile(r"[0-9a-f]{32}"), re.compile(r"[0-9a-f]{2}")
_OBJECT = re.compile(rf"[0-9a-f]{{64}}\.[{''.join(Part)}]{re.escape(SUFFIX)}|[0-9a-f]{{32}}{re.escape(UNFINISHED)}")
LEFT_SECONDS = 600
"""After which a file that is not finished was left by a server that is gone."""
SCAN_WRITES = 256
"""Objects written between two looks at what the whole folder takes; others write there too."""


def check_folder(folder: str | Path, named: str | Path | None = None) -> None:
    """Make a folder where it is not there, and a file in it.

    Raises:
        LeanKVError: where that cannot be; ``named`` is what the flag said, by default the folder.
    """
    probe = Path(folder) / f"{uuid.uuid4().hex}{UNFINISHED}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise LeanKVError(
            f"--leankv-store file:{named or folder} cannot be written to ({error.strerror}); mend it or name another."
        ) from error


class DiskStore:
    """See :class:`~leankv_sglang.offload.page_store.PageStore`.

    Args:
        folder: made where it is not there.
        identity: of the pages; those of another are none of ours and lie in a folder of their own.
        budget: bytes that all pages of the folder may take, others' included.

    Raises:
        LeanKVError: where the folder cannot be made or written to.
    """

    name = "disk"

    def __init__(self, folder: str | Path, identity: bytes, budget: int) -> None:
        self.root, self.budget = Path(folder), budget
        self.folder = self.root / identity.hex()
        self.counts = StoreCounts()
        self._lock = threading.Lock()
        self._since_scan, self._silent = 0, False
        check_folder(self.folder, folder)
        self._make_room()

    def _path(self, name: PageName) -> Path:
        return self.folder / name.key[:2] / f"{name.key}.{name.part}{SUFFIX}"

    def has(self, names: Sequence[PageName]) -> list[bool]:
        """Which of them are there."""
        return [os.path.exists(self._path(name)) for name in names]

    def get(self, names: Sequence[PageName]) -> list[bytes | None]:
        """The objects; their files are now those read last."""
        return [self._read(self._path(name)) for name in names]

    def _read(self, path: Path) -> bytes | None:
        try:
            data = path.read_bytes()
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self._failed("read", error)
            self.counts.misses += 1
            return None
        # Where times cannot be written reading goes on.
        with suppress(OSError):
            os.utime(path)
        self.counts.hits += 1
        return data

    def put(self, objects: Mapping[PageName, bytes]) -> None:
        """Write objects that are not there yet."""
        for name, data in objects.items():
            path = self._path(name)
            if not os.path.exists(path):
                self._write(path, data)
        with self._lock:
            due = self._since_scan >= SCAN_WRITES or self.counts.bytes > self.budget
            if due:
                self._since_scan = 0
        if due:
            self._make_room()

    def _write(self, path: Path, data: bytes) -> None:
        # Machines that share the folder may number their processes alike.
        unfinished = path.parent / f"{uuid.uuid4().hex}{UNFINISHED}"
        try:
            path.parent.mkdir(exist_ok=True)
            unfinished.write_bytes(data)
            os.replace(unfinished, path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            self._failed("write", error)
            return
        with self._lock:
            self._silent = False
            self._since_scan += 1
            self.counts.puts += 1
            self.counts.objects += 1
            self.counts.bytes += len(data)

    def remove(self, names: Sequence[PageName]) -> None:
        """Delete objects that are damaged."""
        for path in map(self._path, names):
            self.counts.damaged += 1
            try:
                size = path.stat().st_size
                path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                self._failed("delete", error)
                continue
            with self._lock:
                self.counts.objects -= 1
                self.counts.bytes = max(self.counts.bytes - size, 0)

    def close(self) -> None:
        """Nothing is under way."""

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """Every object's file in the folder, of all identities, and what was left unfinished. Whatever else lies there
        is somebody's: names that we do not give are neither counted nor touched."""
        for identity in self._entries(self.root, _IDENTITY):
            for part in self._entries(identity.path, _PART):
                yield from self._entries(part.path, _OBJECT)

    def _entries(self, folder: str | Path, name: re.Pattern[str]) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                named = [one for one in entries if name.fullmatch(one.name)]
                return [one for one in named if one.is_dir(follow_symlinks=False) != (name is _OBJECT)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._failed("read", error)
            return []

    def _make_room(self) -> None:
        """Count what the folder takes, and drop the files read longest ago if that is over the budget."""
        found = []
        for entry in self._files():
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue
            if entry.name.endswith(UNFINISHED) and time.time() - status.st_mtime < LEFT_SECONDS:
                continue  # somebody is writing it
            found.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total > self.budget:
            found.sort(reverse=True)
            while found and total > ROOM * self.budget:
                _, size, path = found.pop()
                try:
                    os.unlink(path)
                except FileNotFoundError:
                    pass  # another server's turn
                except OSError as error:
                    self._failed("delete", error)
                    continue
                total -= size
                self.counts.dropped += 1
        with self._lock:
            self.counts.bytes, self.counts.objects = total, len(found)

    def _failed(self, what: str, error: OSError) -> None:
        self.counts.failures += 1
        if not self._silent:
            self._silent = True
            logger.warning(
                "LeanKV cannot %s pages in %s (%s): they count as misses until that is mended.",
                what,
                self.root,
                error.strerror or error,
            )
