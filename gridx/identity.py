"""Who a worker is, whatever it calls itself: an Ed25519 key that it made at its first start.

The worker signs its hello, the coordinator checks the signature and keeps the key, and a user
may pin the key of a worker whose plots may run in a frame without being asked for each job.
Names and fingerprints here need no cryptography, so a notebook does not install any.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Final

from .errors import InvalidRequest

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
FRESH_S: Final = 300  # how far a hello's time may be from the coordinator's own
_PRINT_CHARS: Final = 20


def hello_text(worker_id: str, user: str, signed_at: int) -> bytes:
    """Return what a worker signs in its hello.

    Args:
        signed_at: seconds since 1970 UTC.
    """
    return f"gridx worker hello 1\n{worker_id}\n{user}\n{signed_at}\n".encode()


def encode_key(key: bytes) -> str:
    """Return a public key or a signature as it stands in messages."""
    return base64.b64encode(key).decode("ascii")


def decode_key(text: str, size_bytes: int = KEY_BYTES) -> bytes:
    """Return the bytes of a public key, or of a signature.

    Raises:
        InvalidRequest: it is not base64 of exactly ``size_bytes``.
    """
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != size_bytes:
        raise InvalidRequest("A worker's key or signature is malformed.")
    return key


def fingerprint(public_key: str) -> str:
    """Return 80 bits of the key's digest for people to compare: ``1a2b-3c4d-5e6f-7081-92a3``.

    Raises:
        InvalidRequest: it is no key.
    """
    digest = hashlib.sha256(b"gridx worker key\n" + decode_key(public_key)).hexdigest()
    return "-".join(re.findall("....", digest[:_PRINT_CHARS]))
