"""Whether the server will be able to listen where it is told to, before anything is loaded."""

from __future__ import annotations

import argparse
import errno
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from leankv_sglang.errors import LeanKVError

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 30000
"""SGLang's."""
LAST_PORT = 65535


class _Place(NamedTuple):
    flag: str
    host: str
    port: int


def check_ports(rest: Sequence[str]) -> None:
    """Bind every address that SGLang's flags name, and let it go again.

    Args:
        rest: SGLang's flags; what is no number is left for SGLang to refuse.

    Raises:
        LeanKVError: one sentence naming the first flag whose address cannot be bound, and why.
    """
    for place in _places(rest):
        if not 1 <= place.port <= LAST_PORT:
            raise LeanKVError(f"{place.flag} is a port from 1 to {LAST_PORT}, not {place.port}.")
        if why := _problem(place):
            raise LeanKVError(why)


def _places(rest: Sequence[str]) -> list[_Place]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--host", "--port", "--grpc-port", "--nccl-port", "--node-rank"):
        parser.add_argument(name, nargs="?")
    parser.add_argument("--dist-init-addr", "--nccl-init-addr", nargs="?")
    given = parser.parse_known_args(list(rest))[0]
    host = given.host or DEFAULT_HOST
    found: list[tuple[str, str, str | None]] = [
        ("--port", host, given.port or str(DEFAULT_PORT)),
        ("--grpc-port", host, given.grpc_port or os.environ.get("SGLANG_GRPC_PORT")),
        ("--nccl-port", "", given.nccl_port),
    ]
    if given.dist_init_addr and (given.node_rank or "0") == "0":
        where, _, port = given.dist_init_addr.removeprefix("tcp://").rpartition(":")
        found.append(("--dist-init-addr", where.strip("[]"), port))
    return [_Place(flag, where, int(port)) for flag, where, port in found if port and port.lstrip("-").isdecimal()]


def _problem(place: _Place) -> str | None:
    """As asyncio binds: every address of the host, but those of a family that the machine does not have."""
    try:
        addresses = socket.getaddrinfo(place.host or None, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return f"--host {place.host} is not a name that this machine knows; give an address of this machine."
    bound = 0
    for family, kind, protocol, _, address in addresses:
        try:
            with socket.socket(family, kind, protocol) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    trial.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                trial.bind(address)
                trial.listen(1)
            bound += 1
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"{place.flag} {place.port} is in use at {address[0]}; stop what listens there or choose another."
                )
            if error.errno == errno.EACCES:
                return f"{place.flag} {place.port} needs rights that this user lacks; choose one from 1024 on."
    return None if bound else f"{place.host} is not an address of this machine; give one that is as --host."
