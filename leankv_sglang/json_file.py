"""JSON out of files that anybody may have written."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leankv_sglang.errors import LeanKVError

Broken = Callable[[str], LeanKVError]
"""Makes the error people see of what is wrong with a file."""


def read_file(path: str | Path, broken: Broken) -> bytes:
    """A file's bytes; raises ``broken`` where there are none to be had, or no end of them (a pipe, a device)."""
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise broken("cannot be read (it is no regular file)")
        return Path(path).read_bytes()
    except OSError as error:
        raise broken(f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise broken("cannot be read (no file has such a name)") from error


def parse_json(data: bytes, broken: Broken) -> Any:
    """What a file's bytes say; raises ``broken`` where they are no JSON, or nest deeper than Python follows."""
    try:
        return json.loads(data.decode())
    except RecursionError as error:
        raise broken("is not JSON that can be read (it nests too deeply)") from error
    except ValueError as error:
        raise broken(f"is not JSON ({error})") from error


def read_json(path: str | Path, broken: Broken) -> Any:
    """:func:`read_file` and :func:`parse_json`."""
    return parse_json(read_file(path, broken), broken)
