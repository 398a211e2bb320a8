"""There is no network but the container's own loopback."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.hostile_cells import HostileCells

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def network(cells: HostileCells) -> dict[str, Any]:
    """What a job finds of it."""
    return cells.probe(
        """
def loopback(kind):
    with socket.socket(socket.AF_INET, kind) as one, socket.socket(socket.AF_INET, kind) as two:
        one.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            one.listen()
        two.connect(one.getsockname())
        two.send(b"hello")
        received = one.accept()[0] if kind == socket.SOCK_STREAM else one
        assert received.recv(5) == b"hello"
def unix():
    one, two = socket.socketpair()
    one.send(b"hello")
    assert two.recv(5) == b"hello"
def udp(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as out:
        out.sendto(b"x", (address, 53))
say(
    interfaces=os.listdir("/sys/class/net"),
    routes=read("/proc/net/route").splitlines()[1:],
    tcp=tried(socket.create_connection, ("192.0.2.1", 80), 5),
    tcp6=tried(socket.create_connection, ("2001:db8::1", 80), 5),
    udp=tried(udp, socket.AF_INET, "192.0.2.1"),
    gateway=tried(socket.create_connection, ("172.17.0.1", 22), 5),
    metadata=tried(socket.create_connection, ("169.254.169.254", 80), 5),
    name=tried(socket.getaddrinfo, "example.org", 80),
    raw=tried(socket.socket, 2, 3, 1),
    packet=tried(socket.socket, 17, 3, 768),
    vsock=tried(socket.socket, 40, 1),
    netlink=tried(socket.socket, 16, 3, 0),
    alg=tried(socket.socket, 38, 5),
    bluetooth=tried(socket.socket, 31, 3),
    can=tried(socket.socket, 29, 3, 1),
    over_tcp=tried(loopback, socket.SOCK_STREAM),
    over_udp=tried(loopback, socket.SOCK_DGRAM),
    over_unix=tried(unix),
)
"""
    )


@pytest.mark.guards("network")
def test_the_only_interface_is_loopback_and_there_is_no_route(network: dict[str, Any]) -> None:
    assert network["interfaces"] == ["lo"]
    assert network["routes"] == []


@pytest.mark.parametrize(
    ("what", "answers"),
    {
        "tcp": {"ENETUNREACH"},
        "tcp6": {"ENETUNREACH", "EADDRNOTAVAIL", "EAFNOSUPPORT"},
        "udp": {"ENETUNREACH"},
        "gateway": {"ENETUNREACH"},
        "metadata": {"ENETUNREACH"},
        "name": {"-3", "-2"},  # EAI_AGAIN; EAI_NONAME where there is no resolv.conf
        "raw": {"EPERM"},
        "packet": {"EPERM"},
    }.items(),
)
def test_nothing_goes_out(network: dict[str, Any], what: str, answers: set[str]) -> None:
    assert network[what] in answers


@pytest.mark.guards("runtime: system call filter")
@pytest.mark.parametrize("what", ["vsock", "netlink", "alg", "bluetooth", "can"])
def test_there_are_no_sockets_of_other_families(network: dict[str, Any], what: str) -> None:
    assert network[what] == "EPERM"


@pytest.mark.parametrize("what", ["over_tcp", "over_udp", "over_unix"])
def test_inside_a_container_processes_talk(network: dict[str, Any], what: str) -> None:
    assert network[what] == "done"
