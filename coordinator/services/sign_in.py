"""Who stands behind a name and a password.

Argon2id with 19 MiB, two passes, one lane (OWASP's first choice). It is slow on purpose, so it
runs in threads and outside any transaction, at most two at once: more would be a way to fill the
memory. An unknown name costs as much time as a wrong password.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from gridx.errors import AuthError, Conflict

from ..settings import Settings
from ..store.engine import Store
from ..store.records import UserRecord
from . import accounts

_AT_ONCE = 2
_MAX_PASSWORD_CHARS = 1024


class Passwords:
    """Hashes and verifies passwords in threads of its own."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher(
            time_cost=2, memory_cost=19 * 1024, parallelism=1, hash_len=32, type=Type.ID
        )
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="passwords")
        self._dummy: str | None = None

    async def hash(self, password: str) -> str:
        """Return what to store for ``password``.

        Raises:
            AuthError: it is empty or longer than 1,024 characters.
        """
        if not 0 < len(password) <= _MAX_PASSWORD_CHARS:
            raise AuthError(
                "A password has 1 to 1,024 characters.", hint="Choose one of that length."
            )
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._hasher.hash, password)

    async def verify(self, pw_hash: str | None, password: str) -> bool:
        """Return whether ``password`` is the one behind ``pw_hash``; None takes as long."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._verify, pw_hash, password)

    def _verify(self, pw_hash: str | None, password: str) -> bool:
        if len(password) > _MAX_PASSWORD_CHARS:
            return False
        if self._dummy is None:
            self._dummy = self._hasher.hash("nobody's password")
        try:
            self._hasher.verify(pw_hash or self._dummy, password)
        except (VerificationError, InvalidHashError):
            return False
        return pw_hash is not None

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()


async def sign_in(
    store: Store,
    settings: Settings,
    passwords: Passwords,
    name: str,
    password: str,
    *,
    may_create: bool,
    may_set: bool,
) -> UserRecord:
    """Return the user behind ``name`` and ``password``.

    Args:
        may_create: an unknown name is registered with this password.
        may_set: a name without a password gets this one (open mode made it from a job).

    Raises:
        AuthError: the password is wrong, or there is no such user.
    """
    user = await store.read(accounts.find_user, name)
    if user is None and may_create:
        pw_hash = await passwords.hash(password)
        try:
            return await store.run(accounts.register, settings, name, pw_hash)
        except Conflict:  # somebody was faster with the same name
            user = await store.read(accounts.find_user, name)
    if user is not None and user.pw_hash is None and may_set:
        pw_hash = await passwords.hash(password)
        try:
            await store.run(accounts.set_password, user.user_id, pw_hash)
        except Conflict:
            user = await store.read(accounts.find_user, name)
        else:
            return user
    if not await passwords.verify(None if user is None else user.pw_hash, password):
        raise AuthError("The user name or the password is wrong.")
    assert user is not None
    return user
