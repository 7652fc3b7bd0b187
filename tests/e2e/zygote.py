"""Forks servers, and the processes that they spawn, from one process that has imported sglang: ``-m tests.e2e.zygote``.

Importing sglang takes some twelve seconds of CPU, in each of a server's three to six processes. Forked ones begin where
that import ends: no plugin is loaded and nothing of LeanKV has run. What a server would spawn is forked from a copy of
this process as well, reads what was pickled for it, and loads its plugins itself.

A few servers of the tests are started as users start them, so that this shortcut hides nothing.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing import util
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

LONGEST, MOST_FDS = 1 << 18, 16
"""Of a request."""
_PR_SET_CHILD_SUBREAPER = 36
_PRELOADED = (
    "sglang.launch_server",
    "sglang.srt.entrypoints.http_server",
    "sglang.srt.managers.data_parallel_controller",
    "sglang.srt.managers.detokenizer_manager",
    "sglang.srt.managers.scheduler",
    "sglang.srt.model_executor.model_runner",
    # Of models' files, which a scheduler imports all, the one that takes longest.
    "sglang.srt.models.deepseek_v2",
)

_READ_AT_IMPORT = ("TEST_RETRACT", "TEST_RETRACT_INTERVAL", "TEST_RETRACT_NO_PREFILL_BS")
"""Of the scheduler's environment."""


def main() -> None:
    """Serve the socket whose number is the argument, until its other end is closed."""
    from leankv_sglang.environment import has_accelerator, keep_rows_alike, prepare_cpu, unshadow_kernels

    unshadow_kernels()
    if not has_accelerator():
        keep_rows_alike()
        prepare_cpu()
    for name in _PRELOADED:
        importlib.import_module(name)
    _find_bindings_fast()
    # What is there stays; later collections need not look at it, nor copy the pages it lies on.
    gc.collect()
    gc.freeze()
    _fork_on_demand(socket.socket(fileno=int(sys.argv[1])), _run_module)


def _find_bindings_fast() -> None:
    """SGLang looks for each patch through all that all modules hold, which is half of what a fork costs.

    An index of what is here now does the same; modules that come later, or hold more since, are looked through.
    """
    from sglang.srt.plugins import hook_registry

    exact = hook_registry._propagate_patch
    held = {name: (len(vars(module)), module) for name, module in _modules()}
    bindings: dict[int, list[tuple[ModuleType, str]]] = {}
    for _, module in held.values():
        for attribute, value in vars(module).items():
            bindings.setdefault(id(value), []).append((module, attribute))

    def propagate(original: object, wrapped: object, source: object) -> int:
        found = [
            (module, attribute)
            for module, attribute in bindings.get(id(original), [])
            if module is not source and vars(module).get(attribute) is original
        ]
        for module, attribute in found:
            setattr(module, attribute, wrapped)
        bindings.setdefault(id(wrapped), []).extend(found)
        others = {name: module for name, module in _modules() if held.get(name) != (len(vars(module)), module)}
        with mock.patch.object(hook_registry, "sys", SimpleNamespace(modules=others)):
            return len(found) + exact(original, wrapped, source)

    hook_registry._propagate_patch = propagate


def _modules() -> list[tuple[str, ModuleType]]:
    return [(name, module) for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)]


def _fork_on_demand(requests: socket.socket, run: Callable[[dict[str, Any], list[int]], None]) -> None:
    """For every request a process that runs it; whoever asked becomes its parent, or init where that takes orphans."""
    while True:
        message, fds, *_ = socket.recv_fds(requests, LONGEST, MOST_FDS)
        if not message:
            return
        told, tell = os.pipe()
        between = os.fork()
        if not between:
            child = os.fork()
            if child:
                os.write(tell, b"%d" % child)
                os._exit(0)
            for fd in (told, tell):
                os.close(fd)
            requests.close()
            _end_with(run, json.loads(message), fds)
        os.waitpid(between, 0)
        requests.send(os.read(told, 16))
        for fd in (told, tell, *fds):
            os.close(fd)


def _end_with(run: Callable[[dict[str, Any], list[int]], None], request: dict[str, Any], fds: list[int]) -> None:
    os.environ.clear()
    os.environ.update(request["env"])
    _reread()
    random.seed()
    try:
        run(request, fds)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status := request.get("status"):
        os.write(status, b"%d" % code)
    os._exit(code)


def _reread() -> None:
    """What SGLang has read from the environment while it was imported."""
    from sglang.srt.environ import envs
    from sglang.srt.managers import scheduler

    for name in _READ_AT_IMPORT:
        setattr(scheduler, name, getattr(envs, f"SGLANG_{name}").get())


def _run_module(request: dict[str, Any], fds: list[int]) -> None:
    """``python -m``, in a session of its own, with a file for all it prints and a pipe for its exit code."""
    output, request["status"] = fds
    os.setsid()
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(output)
    sys.argv = [request["module"], *request["args"]]
    _fork_what_is_spawned(request["status"])
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _run_spawned(request: dict[str, Any], fds: list[int]) -> None:
    """What ``multiprocessing`` would have a new interpreter do."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
    aside = [fcntl.fcntl(fd, fcntl.F_DUPFD, 512) for fd in fds]
    for fd in fds:
        os.close(fd)
    for fd, number in zip(aside, request["fds"], strict=True):
        os.dup2(fd, number)
        os.close(fd)
    command = request["args"].index("-c") + 1
    sys.argv = ["-c", *request["args"][command + 1 :]]
    _fork_what_is_spawned()
    exec(request["args"][command])


def _fork_what_is_spawned(*private: int) -> None:
    """From now on ``multiprocessing`` gets its processes from a copy of this one as it is now.

    Args:
        private: files that the copy shall not hold open.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if not os.fork():
        ours.close()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for fd in private:
            os.close(fd)
        _fork_on_demand(theirs, _run_spawned)
        os._exit(0)
    theirs.close()
    exact = util.spawnv_passfds

    def spawnv_passfds(path: Any, args: Any, passfds: Any) -> int:
        told = [os.fsdecode(arg) for arg in args]
        if "--multiprocessing-fork" not in told:
            return exact(path, args, passfds)
        fds = sorted(set(passfds))
        blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
        request = {"args": told, "fds": fds, "env": dict(os.environ), "blocked": blocked}
        socket.send_fds(ours, [json.dumps(request).encode()], fds)
        return int(ours.recv(16))

    util.spawnv_passfds = spawnv_passfds


if __name__ == "__main__":
    main()
