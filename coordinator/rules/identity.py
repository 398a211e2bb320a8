"""Whether a worker is the one that it says it is: its signature, its time, its key of before."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gridx.errors import Forbidden
from gridx.identity import FRESH_S, SIGNATURE_BYTES, decode_key, hello_text
from gridx.protocol import Hello


def check_signature(hello: Hello, now_s: float) -> None:
    """Refuse a hello that brings a key and does not show that it holds it.

    Args:
        now_s: the coordinator's time, in seconds since 1970 UTC.

    Raises:
        Forbidden: the signature is another's, or of another time.
        InvalidRequest: key or signature are malformed.
    """
    if not hello.public_key:
        return
    key = Ed25519PublicKey.from_public_bytes(decode_key(hello.public_key))
    apart_s = abs(now_s - hello.signed_at)
    if apart_s > FRESH_S:
        raise Forbidden(
            f"The worker's clock and the coordinator's differ by {apart_s:.0f} s.",
            hint=f"Set the worker's clock: at most {FRESH_S} s are allowed.",
        )
    signed = hello_text(hello.worker_id, hello.user, hello.signed_at)
    try:
        key.verify(decode_key(hello.signature, SIGNATURE_BYTES), signed)
    except InvalidSignature:
        raise Forbidden(
            "The worker's signature is not that of its key.",
            hint="Start the worker with its own data folder, and the program's own release.",
        ) from None


def check_same_key(worker_id: str, known_key: str, public_key: str) -> None:
    """Refuse a worker whose key is not the one that it had before.

    Raises:
        Forbidden: it has another key now, or none.
    """
    if known_key and public_key != known_key:
        raise Forbidden(
            f"Worker {worker_id} had another key before.",
            hint="Start it with the data folder that it had, or give it a new folder with "
            "--data-dir: then it is a new worker.",
            worker_id=worker_id,
        )
