"""Hands a text to child processes through their environment, however long it is."""

from __future__ import annotations

import fcntl
import hashlib
import os
from functools import cache

from leankv_sglang.errors import LeanKVError

LONGEST = 1 << 12
"""Characters that go as they are; Linux takes 128 KiB for one variable, and a profile of a large model is longer."""
_MARK = "sha256:"
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def leave(text: str) -> str:
    """What to put into the environment for :func:`fetch`: the text, or where this process keeps it and its digest.

    A long text lies in memory of this process that can no longer be changed, and is there for as long as the process
    is: nothing is left behind, however it ends.
    """
    return text if len(text) <= LONGEST else _keep(text, os.getpid())


def fetch(left: str) -> str:
    """The inverse of :func:`leave`, in this process or one that it started.

    Raises:
        LeanKVError: where the text is gone, or is another.
    """
    if not left.startswith(_MARK):
        return left
    digest, _, path = left.removeprefix(_MARK).partition(":")
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise LeanKVError(
            f"What LeanKV's launcher left for its processes in {path} cannot be read ({error.strerror}); start the "
            "launcher again."
        ) from error
    if _digest(data) != digest:
        raise LeanKVError(
            f"What LeanKV's launcher left for its processes in {path} has been changed since; start the launcher again."
        )
    return data.decode()


@cache
def _keep(text: str, pid: int) -> str:
    data = text.encode()
    # Open for as long as this process: nobody closes it.
    fd = os.memfd_create("leankv-config", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return f"{_MARK}{_digest(data)}:/proc/{pid}/fd/{fd}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
