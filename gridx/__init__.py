"""Grid-X: run notebook cells on machines that other people lend.

The public names are loaded on first use, so that ``import gridx.codec`` inside a sandbox
costs neither Tornado nor the client.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocking import BlockingClient as BlockingClient
    from .blocking import connect as connect
    from .blocking import submit as submit
    from .client import Client as Client
    from .codec.opaque import Opaque as Opaque
    from .errors import GridXError as GridXError

__version__ = "0.1.0"

_HOME = {
    "BlockingClient": ".blocking",
    "Client": ".client",
    "GridXError": ".errors",
    "Opaque": ".codec.opaque",
    "connect": ".blocking",
    "submit": ".blocking",
}

__all__ = ["BlockingClient", "Client", "GridXError", "Opaque", "__version__", "connect", "submit"]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'gridx' has no attribute {name!r}")
    return getattr(importlib.import_module(home, __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
