"""Users, their first credits, and their tokens.

A token is 32 random bytes with a prefix that secret scanners know; only its SHA-256 is on record
(random bytes need no slow hash). Passwords are hashed outside any transaction: see sign_in.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

import msgspec
from sqlalchemy import Connection

from gridx.errors import AuthError, Conflict
from gridx.ids import parse_user_name

from ..ledger import accounts as ledger
from ..rules import leases
from ..settings import Settings
from ..store import users
from ..store.records import Identity, UserRecord, WorkerRecord

USER_PREFIX = "gxu_"
WORKER_PREFIX = "gxw_"
_DAY_S = 86_400


class IssuedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token, shown this once."""

    token: str
    expires_us: int


def find_user(tx: Connection, now_us: int, name: str) -> UserRecord | None:
    """Return the user called ``name``, if there is one."""
    return users.find(tx, name)


def ensure_user(tx: Connection, now_us: int, settings: Settings, name: str) -> UserRecord:
    """Return the user called ``name``, created without a password when there is none."""
    return users.find(tx, name) or _create(tx, now_us, settings, name, None)


def register(
    tx: Connection, now_us: int, settings: Settings, name: str, pw_hash: str
) -> UserRecord:
    """Create a user with a password.

    Raises:
        Conflict: the name is taken.
        InvalidRequest: it is no name.
    """
    if users.find(tx, name) is not None:
        raise Conflict(
            f"The name {name} is taken.", hint="Log in with its password, or choose another name."
        )
    return _create(tx, now_us, settings, name, pw_hash)


def _create(
    tx: Connection, now_us: int, settings: Settings, name: str, pw_hash: str | None
) -> UserRecord:
    user = users.insert(tx, parse_user_name(name), pw_hash, now_us)
    account_id = ledger.open_account(tx, user.user_id)
    if settings.is_open:
        key = f"grant:signup:{user.user_id}"
        ledger.grant(tx, account_id, settings.signup_grant_ucr, key, now_us)
    return user


def set_password(tx: Connection, now_us: int, user_id: int, pw_hash: str) -> None:
    """Give a user that has none a password.

    Raises:
        Conflict: there is one.
    """
    if not users.set_first_password(tx, user_id, pw_hash):
        raise Conflict("This user has a password.", hint="Log in with it.")


def issue_token(
    tx: Connection,
    now_us: int,
    settings: Settings,
    user_id: int,
    scopes: Iterable[str],
    worker: WorkerRecord | None = None,
) -> IssuedToken:
    """Make a token for a user, good for ``token_days``; with ``worker``, for that worker only."""
    token = (USER_PREFIX if worker is None else WORKER_PREFIX) + secrets.token_urlsafe(32)
    expires_us = leases.after(now_us, settings.token_days * _DAY_S)
    users.insert_token(
        tx,
        user_id=user_id,
        worker_row_id=None if worker is None else worker.row_id,
        digest=_digest(token),
        scopes=frozenset(str(scope) for scope in scopes),
        now_us=now_us,
        expires_us=expires_us,
    )
    return IssuedToken(token=token, expires_us=expires_us)


def identify(tx: Connection, now_us: int, token: str) -> Identity:
    """Return whom ``token`` stands for.

    Raises:
        AuthError: it is unknown, revoked or expired.
    """
    identity = users.find_identity(tx, _digest(token), now_us)
    if identity is None:
        raise AuthError("This token is not valid, or no longer.")
    return identity


def revoke_token(tx: Connection, now_us: int, token: str) -> bool:
    """End a token; False when it had ended or never was."""
    return users.revoke_token(tx, _digest(token), now_us)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
