"""A start that fails anywhere, in the launcher or in a process of SGLang's, ends in one sentence.

The processes of a server report here what stopped them (``patches/start_failure.py``): a file that the environment
names, whose first line is the sentence, with the traceback beneath it.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType

from leankv_sglang.errors import LeanKVError

REPORT_ENV = "LEANKV_START_REPORT"
"""``PID:PATH`` of the launcher and the file."""
_LONGEST = 400
_PATIENCE = 30.0
"""Seconds that a process which failed waits for the launcher to end it."""


class ChildFailed(BaseException):
    """A process of the server told the launcher that it failed. No ``except Exception`` on the way takes it."""


def begin_report() -> Path:
    """Make the file of this start and tell the processes to come of it."""
    descriptor, name = tempfile.mkstemp(prefix="leankv-start-", suffix=".log")
    os.close(descriptor)
    os.environ[REPORT_ENV] = f"{os.getpid()}:{name}"
    return Path(name)


def report(error: BaseException) -> None:
    """In a process that cannot start: leave the reason and have the launcher end everything.

    Raises:
        SystemExit: always, so that nothing else is said of it; where no launcher asks for reports, returns instead.
    """
    launcher, _, path = os.environ.get(REPORT_ENV, "").partition(":")
    if not path:
        return
    with open(path, "a") as file:
        file.write(f"{_said(error)}\n{''.join(traceback.format_exception(error))}\n")
    os.kill(int(launcher), signal.SIGQUIT)
    time.sleep(_PATIENCE)
    raise SystemExit(1)


def on_child_failure(signum: int, frame: FrameType | None) -> None:
    """What the launcher does on SIGQUIT, by which processes of SGLang say that they failed.

    Raises:
        ChildFailed: always.
    """
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    raise ChildFailed


def start_error(error: BaseException, path: Path) -> LeanKVError:
    """The sentence for a start that an exception ended, whether it is the reason or only follows from it."""
    reported = path.read_text()
    if reported:
        said = reported.partition("\n")[0]
    elif isinstance(error, LeanKVError):
        return error
    elif isinstance(error, ChildFailed):
        said = "a process of the server failed; see the log above"
    else:
        said = _said(error)
        path.write_text("".join(traceback.format_exception(error)))
    where = f" (the traceback is in {path})" if path.stat().st_size else ""
    return LeanKVError(said if said.endswith(".") and not where else f"{said.rstrip('.')}{where}.")


def end_report(path: Path) -> None:
    """Remove the file, unless something was reported."""
    if path.exists() and not path.stat().st_size:
        path.unlink()


def _said(error: BaseException) -> str:
    """One line: our own errors say what to do, of others name and message."""
    text = " ".join(str(error).split())
    if isinstance(error, LeanKVError):
        return text
    if "died during initialization" in text:
        return f"LeanKV cannot start: {text.split('. ')[0]}; -9 is mostly a lack of memory, and the log above says more"
    name = type(error).__name__
    short = text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    return f"LeanKV cannot start: SGLang says {name}{': ' if short else ''}{short}"
