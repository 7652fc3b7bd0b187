"""Runs one program for :mod:`bench.quality.sandbox`, as ``python -I -S`` of this file; imports only Python's own.

Its input is the program and then the runner's token, which it gives back where the program ran to its end. The program
runs in a child that was forked before the token was read, and holds neither that input nor this output. That it ran to
its end the child proves by a number that lies unread in a socket until then; nothing else is believed, exit statuses
least of all.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path

SECONDS = 10
MEMORY = 2 << 30
FILE_BYTES = 1 << 20
FILES = 64
"""Open at a time."""
PROCESSES = 16
"""At a time, the program's own among them."""
TOKEN = 32
"""Bytes of the runner's token, and of the child's number."""
_TICK = 0.05
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> None:
    """Arguments: seconds, and the program's length in bytes."""
    seconds, length = float(sys.argv[1]), int(sys.argv[2])
    libc = ctypes.CDLL(None)
    # Whoever loses its parent becomes a child of this process, a new session of its own or not.
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    program = _read(length)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child = os.fork()
    if not child:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        ours.close()
        # Who ends its own process group ends no supervisor.
        os.setsid()
        _run(program, theirs)
    theirs.close()
    token, number = _read(TOKEN), os.urandom(TOKEN)
    ours.send(b"go")
    ours.send(number)
    try:
        passed = _watch(child, ours, hashlib.sha256(number).digest(), time.monotonic() + seconds)
    finally:
        _end_all()
    if passed:
        os.write(1, token)


def _read(count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = os.read(0, count - len(data))
        if not part:
            sys.exit(1)
        data += part
    return data


def _run(program: bytes, channel: socket.socket) -> None:
    """The child: runs the program, as a module, within its limits; does not come back."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)
    limits = {"CPU": SECONDS, "AS": MEMORY, "FSIZE": FILE_BYTES, "NOFILE": FILES, "CORE": 0}
    for what, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (most, most))
    me = os.getpid()
    channel.recv(TOKEN)
    try:
        exec(compile(program, "answer", "exec"), {"__name__": "answer"})
        # A copy of the process that the program forked comes here too.
        if os.getpid() == me:
            channel.send(hashlib.sha256(channel.recv(TOKEN)).digest())
    finally:
        os._exit(0)


def _watch(child: int, channel: socket.socket, expected: bytes, deadline: float) -> bool:
    """Whether the child tells what is expected of it in time, and there never were too many processes when looked."""
    while time.monotonic() < deadline:
        told = bool(select.select([channel], [], [], _TICK)[0])
        if len(_descendants()) > PROCESSES:
            return False
        if told:
            try:
                return channel.recv(2 * TOKEN) == expected
            except ConnectionResetError:
                # The child has ended and left the number unread.
                return False
        # Waits for none, and leaves to _end_all what it finds.
        if (
            os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            and not select.select([channel], [], [], 0)[0]
        ):
            return False
    return False


def _descendants() -> list[int]:
    """Processes below this one, those that have ended and that nobody has asked about among them."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name before it, in brackets, may hold anything.
            parent = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, todo = [], [os.getpid()]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _end_all() -> None:
    """Kill until nobody is left: who loses its parent to it becomes a child of this process."""
    while True:
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


if __name__ == "__main__":
    main()
