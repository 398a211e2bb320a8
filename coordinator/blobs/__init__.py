"""Big things, kept by owner and digest."""

from __future__ import annotations

from .base import Blobs, Stored
from .local import LocalBlobs

__all__ = ["Blobs", "LocalBlobs", "Stored"]
