"""Users and their tokens."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import Connection, bindparam

from .prepared import Prepared
from .records import Identity, UserRecord
from .tables import api_tokens, users, workers

_find = Prepared(
    sa.select(users.c.id, users.c.name, users.c.pw_hash, users.c.created_us).where(
        users.c.name == bindparam("name")
    )
)
_set_password = Prepared(
    users.update()
    .where(users.c.id == bindparam("user_id"), users.c.pw_hash.is_(None))
    .values(pw_hash=bindparam("hash"))
)
_identify = Prepared(
    sa.select(
        users.c.id,
        users.c.name,
        api_tokens.c.scopes,
        workers.c.public_id,
        api_tokens.c.expires_us,
    )
    .select_from(
        api_tokens.join(users, users.c.id == api_tokens.c.user_id).outerjoin(
            workers, workers.c.id == api_tokens.c.worker_id
        )
    )
    .where(
        api_tokens.c.digest == bindparam("digest"),
        api_tokens.c.revoked_us.is_(None),
        api_tokens.c.expires_us > bindparam("now_us"),
    )
)
_revoke = Prepared(
    api_tokens.update()
    .where(api_tokens.c.digest == bindparam("token_digest"), api_tokens.c.revoked_us.is_(None))
    .values(revoked_us=bindparam("at_us"))
)


def find(tx: Connection, name: str) -> UserRecord | None:
    """Return the user called ``name``, if there is one."""
    row = _find.first(tx, {"name": name})
    if row is None:
        return None
    return UserRecord(user_id=row[0], name=row[1], pw_hash=row[2], created_us=row[3])


def insert(tx: Connection, name: str, pw_hash: str | None, now_us: int) -> UserRecord:
    """Add a user. The name must be free."""
    user_id = tx.execute(
        users.insert().returning(users.c.id),
        {"name": name, "pw_hash": pw_hash, "created_us": now_us},
    ).scalar_one()
    return UserRecord(user_id=user_id, name=name, pw_hash=pw_hash, created_us=now_us)


def set_first_password(tx: Connection, user_id: int, pw_hash: str) -> bool:
    """Set a password where there is none; False where there is one."""
    return _set_password.run(tx, {"user_id": user_id, "hash": pw_hash}) == 1


def insert_token(
    tx: Connection,
    *,
    user_id: int,
    worker_row_id: int | None,
    digest: bytes,
    scopes: frozenset[str],
    now_us: int,
    expires_us: int,
) -> None:
    """Add a token by its digest; the token itself is nowhere on record."""
    tx.execute(
        api_tokens.insert(),
        {
            "user_id": user_id,
            "worker_id": worker_row_id,
            "digest": digest,
            "scopes": " ".join(sorted(scopes)),
            "created_us": now_us,
            "expires_us": expires_us,
        },
    )


def find_identity(tx: Connection, digest: bytes, now_us: int) -> Identity | None:
    """Return whom a token that is neither revoked nor expired stands for."""
    row = _identify.first(tx, {"digest": digest, "now_us": now_us})
    if row is None:
        return None
    return Identity(
        user_id=row[0],
        user=row[1],
        scopes=frozenset(row[2].split()),
        worker_id=row[3],
        expires_us=row[4],
    )


def revoke_token(tx: Connection, digest: bytes, now_us: int) -> bool:
    """End a token; False when it had ended or never was."""
    return _revoke.run(tx, {"token_digest": digest, "at_us": now_us}) == 1
