"""Results as data: what a worker sends is decoded without running a byte of it.

``encode`` runs in the container, ``decode`` on the user's machine. The decoder never imports a
module that the message names, looks classes up among the user's own alone, calls none of the
user's code, and parses no third-party format. What it does not know arrives as an inert
``Opaque``.

A message is ``magic, u64 length, head, blobs``. The head is MessagePack ``[version, root, blob
sizes]``. A node is nil, bool, int64, float, str, bytes, or ``[tag, ...]`` with a tag of the closed
table in ``tags``. Containers are numbered in the order of their creation, and ``[REF, i]`` points
back, so aliases and cycles survive.
"""

from __future__ import annotations

from .decode import decode
from .encode import encode
from .failures import CodecError
from .limits import Limits
from .opaque import Opaque
from .user_values import user_classes

__all__ = ["CodecError", "Limits", "Opaque", "decode", "encode", "user_classes"]
