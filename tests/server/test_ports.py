"""Addresses that a server could not bind are found before anything is loaded."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from leankv_sglang.errors import LeanKVError
from leankv_sglang.processes import free_port
from leankv_sglang.server.ports import check_ports
from tests.sentences import is_one_sentence


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that somebody listens at."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        yield str(other.getsockname()[1])


@pytest.mark.parametrize("flag", ["--port", "--grpc-port", "--nccl-port", "--dist-init-addr"])
def test_a_port_in_use_is_named(taken: str, flag: str) -> None:
    value = f"127.0.0.1:{taken}" if flag == "--dist-init-addr" else taken
    others = [] if flag == "--port" else ["--port", str(free_port())]
    for given in ([flag, value], [f"{flag}={value}"]):
        with pytest.raises(LeanKVError) as caught:
            check_ports([*given, *others])
        assert f"{flag} {taken} is in use" in str(caught.value)
        assert is_one_sentence(str(caught.value))


def test_free_ports_pass_and_stay_free() -> None:
    port = str(free_port())
    for _ in range(2):
        check_ports(["--port", port, "--host", "0.0.0.0"])
    check_ports(["--port", "abc"])
    check_ports(["--port", port, "--node-rank", "1", "--dist-init-addr", "192.0.2.1:20"])


@pytest.mark.parametrize("port", ["0", "-1", "65536"])
def test_what_is_no_port_is_refused(port: str) -> None:
    with pytest.raises(LeanKVError, match="--port is a port from 1 to 65535"):
        check_ports([f"--port={port}"])


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(LeanKVError) as caught:
        check_ports(["--host", host, "--port", str(free_port())])
    assert host in str(caught.value)
    assert is_one_sentence(str(caught.value))
