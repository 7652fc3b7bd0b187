"""Numbers of bytes as people write them."""

from __future__ import annotations

import re

from leankv_sglang.errors import LeanKVError

MOST_BYTES = 2**60
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: str, flag: str = "--memory") -> int:
    """``2GiB``, ``80G`` or ``1500000000`` as bytes.

    Raises:
        LeanKVError: for anything else; it names the flag.
    """
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmgt]?i?)b?\s*", text.lower())
    if not match or match[2] not in _UNITS or match[1].count(".") > 1 or match[1] == ".":
        raise LeanKVError(f"{flag} takes bytes such as 2GiB or 80G, not {text!r}.")
    count = float(match[1]) * _UNITS[match[2]]
    if count > MOST_BYTES:
        raise LeanKVError(f"{flag} takes at most {MOST_BYTES >> 40:,}TiB, and {text!r} is more.")
    return int(count)


def say_bytes(count: int) -> str:
    """A number of bytes for people: ``6 MiB``, ``1.5 GiB``."""
    power = max(min((max(count, 1).bit_length() - 1) // 10, 4), 1)
    return f"{count / 2 ** (10 * power):,.3g} {('KiB', 'MiB', 'GiB', 'TiB')[power - 1]}"
