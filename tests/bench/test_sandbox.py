"""Programs that models write: what passes, what is ended, and what is left."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.quality import sandbox
from bench.quality.sandbox import passes
from bench.quality.sandbox_supervisor import PROCESSES

HARMLESS = {
    "nothing": "",
    "a module": "import math\nassert math.gcd(4, 6) == 2",
    "not the main module": "if __name__ == '__main__':\n    raise SystemExit(1)",
    "a loud one": "print('x' * (1 << 20))",
    "one that asks": "try:\n    input()\nexcept EOFError:\n    pass",
    "a file": "open('a', 'w').write('x' * 1000)\nassert open('a').read()",
    "a process": "import subprocess, sys\nassert subprocess.run([sys.executable, '-c', '']).returncode == 0",
    "threads": "import threading\n[threading.Thread(target=input, daemon=True).start() for _ in range(4)]",
}
FORGED = {
    "an exit status": "import os\nos._exit({status})",
    "an exit": "raise SystemExit({status})",
    "its own end": "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)",
    "an exit at the end": "import atexit, os\natexit.register(os._exit, 0)\nraise ValueError",
    "another program": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', ''])",
    "what all its files say": (
        "import os\nos.write(1, b'x' * 32)\n"
        "for fd in range(64):\n"
        "    try:\n        said = os.read(fd, 64)\n"
        "    except OSError:\n        continue\n"
        "    for to in range(64):\n"
        "        try:\n            os.write(to, said)\n"
        "        except OSError:\n            pass\n"
        "os._exit(0)"
    ),
    "a fork that goes on": "import os, time\nif os.fork():\n    os.wait()\n    raise ValueError",
    "no files": "import os\nos.closerange(0, 1024)",
    "the supervisor's end": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nraise ValueError",
}
FAILED = {
    "an assertion": "assert False",
    "no Python": "def (",
    "a null": "\0",
    "half a character": "x = '\ud800",
    "an interrupt": "raise KeyboardInterrupt",
    "memory": "x = bytearray(4 << 30)",
    "a long file": "open('a', 'w').write('x' * (4 << 20))",
    "depth": "def f():\n    f()\nf()",
}
FORKS = """
import os, time
for _ in range({count}):
    if not os.fork():
        {child}
"""
SLEEPS = "time.sleep(600)"
MARK = "sandbox-test-{}"


@pytest.fixture(params=["isolated", "plain"], autouse=True)
def isolated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With namespaces, where the system has them, and without."""
    if request.param == "plain":
        monkeypatch.setattr(sandbox, "isolation", lambda: ())
    elif not sandbox.isolation():
        pytest.skip("this system has no unshare, or does not allow it")
    return bool(request.param == "isolated")


@pytest.mark.parametrize("what", HARMLESS)
def test_what_runs_to_its_end_passes(what: str) -> None:
    assert passes(HARMLESS[what])


@pytest.mark.parametrize("what", FAILED)
def test_what_does_not_run_to_its_end_fails(what: str) -> None:
    assert not passes(FAILED[what])


@pytest.mark.parametrize("status", [0, 97])
@pytest.mark.parametrize("what", FORGED)
def test_a_verdict_cannot_be_had_otherwise(what: str, status: int) -> None:
    assert not passes(FORGED[what].format(status=status))


@pytest.mark.parametrize("child", [SLEEPS, "os._exit(0)"], ids=["that sleep", "that have ended"])
def test_many_processes_are_refused(child: str) -> None:
    assert not passes(FORKS.format(count=50, child=child))
    assert not passes(FORKS.format(count=PROCESSES, child=child))
    assert passes(FORKS.format(count=PROCESSES - 1, child=child))


def left(mark: str) -> list[int]:
    """Processes whose environment has the mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


OUTLIVES = """
import os, subprocess, sys, time
sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)", "{mark}"]
subprocess.Popen(sleeper)
subprocess.Popen(sleeper, start_new_session=True)
if not os.fork():
    os.setsid()
    if not os.fork():
        os.setsid()
        os.execv(sleeper[0], sleeper)
    os._exit(0)
time.sleep(0.3)
"""


@pytest.mark.parametrize(
    ("ending", "passed"),
    [
        ("", True),
        ("raise ValueError", False),
        ("while True: pass", False),
        ("time.sleep(600)", False),
        ("os.killpg(0, 9)", False),
    ],
    ids=["an end", "an error", "a loop", "sleep", "an end of its group"],
)
def test_nobody_outlives_it(ending: str, passed: bool) -> None:
    mark = MARK.format(f"{os.getpid()}-{time.monotonic_ns()}")
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            seen.extend(left(mark))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            assert passes(OUTLIVES.format(mark=mark) + ending, seconds=2) == passed
        finally:
            done.set()
        looking.result()
    assert seen
    assert left(mark) == []


def test_time_is_up_whatever_it_does() -> None:
    ignores = "import signal, time\nfor n in (1, 2, 15):\n    signal.signal(n, signal.SIG_IGN)\ntime.sleep(600)"
    assert not passes(ignores, seconds=1)


def test_namespaces_hide_the_network_and_other_processes(isolated: bool) -> None:
    alone = "import os\nassert len([n for n in os.listdir('/proc') if n.isdigit()]) == 2"
    alone += (
        "\nassert not [line for line in open('/proc/net/dev').readlines()[2:] if not line.strip().startswith('lo')]"
    )
    assert passes(alone) == isolated
