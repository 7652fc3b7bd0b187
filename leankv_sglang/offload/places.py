"""Whether the places that a configuration names can be had, before anything is loaded."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from leankv_sglang.byte_size import say_bytes
from leankv_sglang.config import LeanKVConfig
from leankv_sglang.errors import LeanKVError

CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_of_this_machine() -> int:
    """Bytes of main memory, or fewer where a container may have only those."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):
        return min(total, int(CONTAINER_LIMIT.read_text()))
    return total


def check_places(config: LeanKVConfig) -> None:
    """Look at what memory there is, and at the folder or at the Mooncake master.

    Raises:
        LeanKVError: one sentence saying which flag is wrong.
    """
    asked = {"--leankv-host-memory": config.host_memory}
    if config.store is not None and config.store.startswith("mooncake:"):
        asked["--leankv-store-size"] = config.store_size
    if sum(asked.values()) > (memory := memory_of_this_machine()):
        flags = " and ".join(f"{flag} {say_bytes(size)}" for flag, size in asked.items() if size)
        raise LeanKVError(f"This machine has {say_bytes(memory)} of memory, too little for {flags}; ask for less.")
    if config.store is None:
        return
    if config.store.startswith("file:"):
        from leankv_sglang.offload.disk import check_folder

        check_folder(config.store.removeprefix("file:"))
    else:
        from leankv_sglang.offload.mooncake import check_master, parse_address

        check_master(parse_address(config.store))
