"""Page objects in a Mooncake Store: the memory of many machines, found through one master.

Every server gives a segment of its memory and reads everybody's, over TCP or RDMA. The client's calls wait for seconds
where the master is gone, so while it is known to be away nothing is asked at all. The client finds the master again by
itself.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from leankv_sglang.errors import LeanKVError
from leankv_sglang.offload.page_object import PageName
from leankv_sglang.offload.page_store import StoreCounts

logger = logging.getLogger(__name__)

PROTOCOLS = ("tcp", "rdma")
ASK_MASTER_SECONDS = 5.0
BUFFER_BYTES = 256 << 20
"""Memory of the client through which objects come and go."""
BATCH = 16
"""Objects that are read with one call."""
_PACKAGE = "mooncake-transfer-engine-non-cuda (on GPU machines mooncake-transfer-engine)"


class MooncakeAddress(NamedTuple):
    """Where the master is, and how data travel."""

    master: str
    protocol: str
    device: str
    """RDMA devices, comma-separated; empty for the client's own choice."""
    host: str
    """Of this machine, by which others reach it."""


def parse_address(text: str) -> MooncakeAddress:
    """``mooncake://MASTER:PORT``, with ``?protocol=rdma&device=mlx5_0&host=10.0.0.2`` where the defaults do not fit.

    Raises:
        LeanKVError: for anything else.
    """
    parts = urlsplit(text)
    options = parse_qs(parts.query)
    try:
        port = parts.port
    except ValueError:
        port = None
    known = {"protocol", "device", "host"}
    protocol = options.get("protocol", ["tcp"])[0]
    if (
        parts.scheme != "mooncake"
        or not parts.hostname
        or not port
        or set(options) - known
        or protocol not in PROTOCOLS
    ):
        raise LeanKVError(
            "--leankv-store takes mooncake://MASTER:PORT, and behind it ?protocol=tcp or rdma, &device= and &host= "
            f"where they are needed, not {text!r}."
        )
    host = options.get("host", [""])[0] or _own_address(parts.hostname, port)
    return MooncakeAddress(f"{parts.hostname}:{port}", protocol, options.get("device", [""])[0], host)


def _own_address(master: str, port: int) -> str:
    """The address of this machine from which it would talk to the master; sends nothing."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((master, port))
            return str(probe.getsockname()[0])
    except OSError as error:
        raise LeanKVError(
            f"--leankv-store: the Mooncake master {master}:{port} is not to be found ({error})."
        ) from error


def check_master(address: MooncakeAddress) -> None:
    """Have a look whether a master listens; the client itself would wait for it for minutes.

    Raises:
        LeanKVError: where none does.
    """
    host, _, port = address.master.rpartition(":")
    try:
        socket.create_connection((host, int(port)), ASK_MASTER_SECONDS).close()
    except OSError as error:
        raise LeanKVError(
            f"--leankv-store: no Mooncake master listens at {address.master} ({error}); start mooncake_master there."
        ) from error


class MooncakeStore:
    """See :class:`~leankv_sglang.offload.page_store.PageStore`.

    Args:
        address: of the master, and of this machine.
        identity: of the pages.
        budget: bytes of this machine's memory that all servers may fill.

    Raises:
        LeanKVError: where the package is not installed, or the master does not answer.
    """

    name = "mooncake"

    def __init__(self, address: MooncakeAddress, identity: bytes, budget: int) -> None:
        self.address, self.budget = address, budget
        self.counts = StoreCounts()
        self._prefix = identity.hex()
        self._lock = threading.Lock()
        self._away = False
        check_master(address)
        self._store = self._connect()

    def _connect(self) -> Any:
        # Read once, when the client's library is loaded.
        if self.address.protocol == "tcp":
            os.environ.setdefault("MC_FORCE_TCP", "1")
        os.environ.setdefault("GLOG_minloglevel", "2")
        try:
            from mooncake.store import MooncakeDistributedStore
        except ImportError as error:
            raise LeanKVError(f"--leankv-store mooncake:// needs the package {_PACKAGE} ({error}).") from error
        store = MooncakeDistributedStore()
        a = self.address
        status = store.setup(a.host, "P2PHANDSHAKE", self.budget, BUFFER_BYTES, a.protocol, a.device, a.master)
        if status:
            raise LeanKVError(
                f"--leankv-store: the Mooncake master {a.master} did not answer (status {status}); is it running?"
            )
        return store

    def _key(self, name: PageName) -> str:
        return f"{self._prefix}/{name.key}.{name.part}"

    def _is_there(self) -> bool:
        """Whether the master is; said once when it goes and once when it is back."""
        away = self._store.health_check() != 0
        if away != self._away:
            self._away = away
            if away:
                self.counts.failures += 1
                logger.warning("The Mooncake master %s is away: its pages count as misses.", self.address.master)
            else:
                logger.warning("The Mooncake master %s is back.", self.address.master)
        return not away

    def has(self, names: Sequence[PageName]) -> list[bool]:
        """Which of them are there."""
        if not names or not self._is_there():
            return [False] * len(names)
        return [found == 1 for found in self._store.batch_is_exist([self._key(name) for name in names])]

    def get(self, names: Sequence[PageName]) -> list[bytes | None]:
        """The objects."""
        found: list[bytes | None] = []
        for start in range(0, len(names), BATCH):
            part = [self._key(name) for name in names[start : start + BATCH]]
            found += [data or None for data in self._store.get_batch(part)] if self._is_there() else [None] * len(part)
        hits = sum(data is not None for data in found)
        with self._lock:
            self.counts.hits += hits
            self.counts.misses += len(found) - hits
        return found

    def put(self, objects: Mapping[PageName, bytes]) -> None:
        """Put objects that are not there yet."""
        for name, data in objects.items():
            if not self._is_there():
                return
            # Where it is there already nothing is written.
            status = self._store.put(self._key(name), data)
            self.counts.puts += not status
            self.counts.failures += bool(status)

    def remove(self, names: Sequence[PageName]) -> None:
        """Remove objects that are damaged."""
        for name in names:
            self.counts.damaged += 1
            if self._is_there():
                self._store.remove(self._key(name), True)

    def close(self) -> None:
        """Leave; what lies in this machine's memory is gone for all."""
        self._store.close()
