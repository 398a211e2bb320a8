"""Which user's process is at the other end of a loopback connection.

Every process of a machine can connect to loopback, so "it came from 127.0.0.1" says nothing about
the person. Linux tells the uid of the other end's socket: by netlink (one question, one answer),
or by the tables in /proc, which list every socket. Source: sock_diag(7), proc(5).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from pathlib import Path

_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NETLINK_SOCK_DIAG = 4
_NO_COOKIE = 0xFFFFFFFF
_NETLINK_HEADER = struct.Struct("=IHHII")
_ALL_STATES = 0xFFFFFFFF
_UID_OFFSET = _NETLINK_HEADER.size + 4 + 48 + 12  # inet_diag_msg: idiag_uid


def uid_of_peer(connection: socket.socket) -> int | None:
    """Return the uid that owns the other end of ``connection``, or None when it cannot be told."""
    try:
        ours, theirs = connection.getsockname(), connection.getpeername()
    except OSError:
        return None
    return find_uid((theirs[0], theirs[1]), (ours[0], ours[1]))


def find_uid(local: tuple[str, int], remote: tuple[str, int]) -> int | None:
    """Return the uid of this machine's TCP socket from ``local`` to ``remote``, or None."""
    try:
        ends = (_plain(local[0]), local[1]), (_plain(remote[0]), remote[1])
    except ValueError:
        return None
    found = _ask_netlink(*ends)
    return found if found is not None else _search_tables(*ends)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_End = tuple[_Address, int]


def _plain(host: str) -> _Address:
    """Return the address; an IPv4 one mapped into IPv6 becomes plain IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _ask_netlink(local: _End, remote: _End) -> int | None:
    if not hasattr(socket, "AF_NETLINK") or local[0].version != remote[0].version:
        return None
    family = socket.AF_INET if local[0].version == 4 else socket.AF_INET6
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES)
    request += struct.pack("!HH", local[1], remote[1])
    request += local[0].packed.ljust(16, b"\0") + remote[0].packed.ljust(16, b"\0")
    request += struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
    header = _NETLINK_HEADER.pack(
        _NETLINK_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0
    )
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as netlink:
            netlink.settimeout(0.2)
            netlink.sendto(header + request, (0, 0))
            answer = netlink.recv(4096)
    except OSError:
        return None  # no such netlink family here, or refused: the tables may still tell
    if len(answer) < _UID_OFFSET + 4:
        return None
    if _NETLINK_HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None  # an error message: no such socket
    uid: int = struct.unpack_from("=I", answer, _UID_OFFSET)[0]
    return uid


def _as_in_table(end: _End, *, wide: bool) -> str:
    """Return an end as /proc/net writes it: words of the address in host order, then the port."""
    address, port = end
    packed = address.packed
    if wide and address.version == 4:
        packed = b"\0" * 10 + b"\xff\xff" + packed
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def _search_tables(local: _End, remote: _End) -> int | None:
    for table, wide in (("/proc/net/tcp", False), ("/proc/net/tcp6", True)):
        if not wide and local[0].version == 6:
            continue
        try:
            text = Path(table).read_text(encoding="ascii")
        except OSError:
            continue
        wanted = f" {_as_in_table(local, wide=wide)} {_as_in_table(remote, wide=wide)} "
        at = text.find(wanted)
        if at >= 0:
            # After the two ends: state, queues, timer, retransmits, uid.
            return int(text[at + len(wanted) :].split(maxsplit=5)[4])
    return None
