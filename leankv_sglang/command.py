"""How every command of the package ends."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from leankv_sglang.errors import LeanKVError


def exit_code(run: Callable[[], object]) -> int:
    """Run a command; 0, 2 after an error that people see, 130 when interrupted."""
    try:
        run()
    except LeanKVError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


@contextmanager
def usage_in_a_sentence() -> Iterator[None]:
    """Within it no parser of a command line, also one of SGLang's, prints its usage and exits for a wrong argument.

    Raises:
        LeanKVError: what is wrong with it.
    """
    usual = argparse.ArgumentParser.error

    def error(self: argparse.ArgumentParser, message: str) -> NoReturn:
        raise LeanKVError(f"{message.removeprefix('argument ')}; --help lists the flags.")

    argparse.ArgumentParser.error = error  # type: ignore[method-assign]
    try:
        yield
    finally:
        argparse.ArgumentParser.error = usual  # type: ignore[method-assign]
