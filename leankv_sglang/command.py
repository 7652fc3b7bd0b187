"""How every command of the package ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

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
