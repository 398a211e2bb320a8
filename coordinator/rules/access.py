"""Who may do what.

A scope is declared once, beside the route that needs it; what a caller may do to one job or
account is decided here. In open mode (loopback only) the machine's one user may do everything in
anybody's name: the guard has shown before that the connection comes from that user.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from gridx.errors import AuthError, Forbidden


class Scope(StrEnum):
    """What a route asks of its caller."""

    PUBLIC = "public"  # anybody who reaches the port
    JOBS_READ = "jobs:read"  # see one's own jobs, account and the workers
    JOBS_WRITE = "jobs:write"  # submit and cancel
    WORKER = "worker"  # lend a machine
    ADMIN = "admin"  # everything, in anybody's name


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who calls: ``user`` is None where nobody said who they are."""

    user: str | None = None
    scopes: frozenset[Scope] = frozenset({Scope.PUBLIC})
    is_open: bool = False  # open mode: may act in anybody's name
    worker_id: str | None = None  # the worker whose token it is; ``user`` is then its owner


OPEN = Caller(scopes=frozenset(Scope), is_open=True)


def require(caller: Caller, scope: Scope) -> None:
    """Refuse a caller without ``scope``.

    Raises:
        AuthError: nobody is logged in.
        Forbidden: the login does not reach this far.
    """
    if scope is Scope.PUBLIC or scope in caller.scopes or Scope.ADMIN in caller.scopes:
        return
    if caller.user is None:
        raise AuthError("This request needs a login.")
    raise Forbidden(f"This login may not do that: it lacks the scope {scope.value}.")


def may_act_for(caller: Caller, user: str) -> bool:
    """Return whether ``caller`` may submit, see and cancel in the name of ``user``."""
    return caller.is_open or caller.user == user or Scope.ADMIN in caller.scopes


def acting_user(caller: Caller, named: str | None) -> str | None:
    """Return whose name a request acts in: the one that it names, else the login's own.

    Raises:
        Forbidden: the request names somebody else.
    """
    user = named or caller.user
    if user is not None and not may_act_for(caller, user):
        raise Forbidden(
            f"You are logged in as {caller.user}; this request is in the name of {user}.",
            hint="Leave user_id out, or log in with that account.",
        )
    return user
