"""Whether a Docker engine answers on this machine, without Docker's own library.

The same address as every Docker client uses: ``DOCKER_HOST``, else the system's socket.
Source: Docker Engine API, ``GET /version``.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
_TIMEOUT_S = 3.0
_MOST_BYTES = 256 * 1024


@dataclass(frozen=True)
class Engine:
    """What answers at ``address``; ``reason`` says why nothing does, and is empty otherwise."""

    address: str
    version: str = ""
    reason: str = ""

    @property
    def answers(self) -> bool:
        """Whether it can be used now."""
        return not self.reason


def find_engine(environ: Mapping[str, str] = os.environ) -> Engine:
    """Ask the engine for its version; never raises."""
    address = environ.get("DOCKER_HOST") or DEFAULT_ADDRESS
    parts = urlsplit(address)
    try:
        if parts.scheme == "unix":
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            target: str | tuple[str, int] = parts.path
        elif parts.scheme in ("tcp", "http"):
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            target = (parts.hostname or "127.0.0.1", parts.port or 2375)
        else:
            return Engine(address, reason=f"{parts.scheme}:// addresses are not looked at here")
        with connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(target)
            connection.sendall(b"GET /version HTTP/1.0\r\nHost: docker\r\n\r\n")
            reply = b""
            while len(reply) < _MOST_BYTES and (piece := connection.recv(65536)):
                reply += piece
        version = json.loads(reply.partition(b"\r\n\r\n")[2])["Version"]
    except FileNotFoundError:
        return Engine(address, reason="no engine is running")
    except PermissionError:
        return Engine(address, reason="this user may not use the engine")
    except TimeoutError:
        return Engine(address, reason=f"no answer within {_TIMEOUT_S:.0f} s")
    except (OSError, ValueError, KeyError, TypeError) as exc:
        cause = exc.strerror if isinstance(exc, OSError) else None
        return Engine(address, reason=(cause or "the answer is not an engine's").lower())
    return Engine(address, version=str(version))
