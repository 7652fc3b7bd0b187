"""Command lines of benches: the flags that they share, and how they end."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bench.common.processes import kill_held
from leankv_sglang.errors import LeanKVError

OUT = Path(__file__).resolve().parents[1] / "out"
"""Where plots go that nobody has named a file for."""


class Parser(argparse.ArgumentParser):
    """The flags of a bench: those added to it, ``--quick``, ``--json`` and, where it draws, ``--plot``.

    Args:
        name: of the bench, as in ``python -m bench.NAME``.
        doc: what ``--help`` says of it.
        quick: what ``--quick`` does, and about how long it takes.
        sizes: defaults of flags under ``--quick``; what is given all the same wins.
        plot: whether it draws.
    """

    def __init__(self, name: str, doc: str | None, *, quick: str, sizes: dict[str, Any], plot: bool = False) -> None:
        super().__init__(
            prog=f"python -m bench.{name}",
            description=doc,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.sizes = sizes
        self.add_argument("--quick", action="store_true", help=quick)
        self.add_argument("--json", metavar="FILE", help="save the rows")
        if plot:
            file = OUT / f"{name}.png"
            shown = f"default: bench/out/{file.name}"
            self.add_argument("--plot", metavar="FILE", default=str(file), help=f"PNG or SVG ({shown})")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ``argparse`` does, with the defaults of ``--quick`` where that is among the arguments."""
        given: Sequence[str] = sys.argv[1:] if args is None else args
        if "--quick" in given:
            self.set_defaults(**self.sizes)
        return super().parse_known_args(given, namespace)


_stopped = threading.Event()


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run a bench and exit: with what it returns, with 2 and a sentence after an error that people see, and with 130
    and one line when it is stopped (Ctrl-C, SIGTERM), its servers and other children first."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    usual = threading.excepthook
    # Of threads that lose their server because the bench is stopped nobody wants to hear.
    threading.excepthook = lambda said: None if _stopped.is_set() else usual(said)
    status = 0
    try:
        status = main() or 0
    except LeanKVError as error:
        status = 2
        if not _stopped.is_set():
            print(f"error: {error}", file=sys.stderr)
    except BaseException:
        # What a stopped bench unwinds with may be any error of a server that is gone.
        if not _stopped.is_set():
            raise
    if _stopped.is_set():
        status = 130
        print("interrupted", file=sys.stderr)
    sys.exit(status)


def _stop(_number: int, _frame: Any) -> None:
    again = _stopped.is_set()
    _stopped.set()
    kill_held()
    if again:
        os._exit(130)
    raise KeyboardInterrupt
