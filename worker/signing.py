"""The worker's own key, made at its first start and kept in its folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gridx.errors import SettingsError
from gridx.identity import KEY_BYTES, encode_key, hello_text


class Signer:
    """Signs hellos. The key is 32 bytes in a file that its owner alone can read."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            SettingsError: the file holds no key, or cannot be read or made.
        """
        self._key = Ed25519PrivateKey.from_private_bytes(_load_or_make(path))

    @property
    def public_key(self) -> str:
        """The public key, as it stands in messages."""
        return encode_key(self._key.public_key().public_bytes_raw())

    def sign_hello(self, worker_id: str, user: str) -> tuple[int, str]:
        """Return the time of signing, in seconds since 1970 UTC, and the signature."""
        signed_at = int(time.time())
        return signed_at, encode_key(self._key.sign(hello_text(worker_id, user, signed_at)))


def _load_or_make(path: Path) -> bytes:
    try:
        if not path.exists():
            _write(path, Ed25519PrivateKey.generate().private_bytes_raw())
        key = path.read_bytes()
    except OSError as error:
        raise SettingsError(f"The worker's key {path} cannot be used: {error.strerror}.") from error
    if len(key) != KEY_BYTES:
        raise SettingsError(
            f"{path} holds no key.",
            hint="Put the right file back. A worker with a new key needs a new id: give it an "
            "empty folder with --data-dir.",
        )
    return key


def _write(path: Path, key: bytes) -> None:
    part = path.with_name(f"{path.name}.part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
