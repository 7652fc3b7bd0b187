"""What an image says of its kernels: threads of a block, dynamic shared bytes, bytes of arguments.

The compiler put the three numbers beside each kernel (csrc/unit.cu). They are read off the image on the host: there a
variable of the device is a local symbol, and so a kernel's first launch needs no copy from the device.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_FACTS = struct.Struct("<3i")
_SYMBOL_TABLE = 2  # SHT_SYMTAB


class Facts(NamedTuple):
    """Of one kernel."""

    threads: int
    shared_bytes: int
    argument_bytes: int


def facts_of(image: bytes, kernel: str) -> Facts:
    """Of a kernel of a cubin or of PTX.

    Raises:
        ValueError: for an image without that kernel.
    """
    name = f"{kernel}_facts"
    data = _of_cubin(image, name) if image[:4] == b"\x7fELF" else _of_ptx(image, name)
    if data is None:
        raise ValueError(f"the image has no kernel {kernel} with facts: delete the cache of compiled cuda kernels")
    return Facts(*_FACTS.unpack(data))


def _of_cubin(image: bytes, name: str) -> bytes | None:
    (at,) = struct.unpack_from("<Q", image, 0x28)
    size, count = struct.unpack_from("<HH", image, 0x3A)
    sections = [_SECTION.unpack_from(image, at + i * size) for i in range(count)]
    for _, kind, _, _, begin, length, link, *_ in sections:
        if kind != _SYMBOL_TABLE:
            continue
        names = sections[link][4]
        for place in range(begin, begin + length, _SYMBOL.size):
            text, _, _, section, value, nbytes = _SYMBOL.unpack_from(image, place)
            if nbytes == _FACTS.size and image[names + text :].startswith(name.encode() + b"\0"):
                _, _, _, address, offset, *_ = sections[section]
                return image[offset + value - address :][: _FACTS.size]
    return None


def _of_ptx(image: bytes, name: str) -> bytes | None:
    found = re.search(rf"\b{name}\[{_FACTS.size}\] = {{([\d, ]+)}}".encode(), image)
    # Zeros at the end are left out.
    return bytes(map(int, found[1].split(b","))).ljust(_FACTS.size, b"\0") if found else None
