"""Accounts over REST: balance, registration, log-in."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gridx.clock import to_datetime
from gridx.errors import AuthError, Conflict, Forbidden, InvalidRequest
from gridx.ids import parse_user_name
from gridx.schemas import Credentials, TokenView

from ..rules.access import Scope, acting_user
from ..services import accounts, views
from .base import Call, Reply

if TYPE_CHECKING:
    from .context import Context

MIN_PASSWORD_CHARACTERS = 8
MAX_PASSWORD_CHARACTERS = 1024
_LOGIN_SCOPES = (Scope.JOBS_READ.value, Scope.JOBS_WRITE.value)


async def show_credits(context: Context, call: Call) -> Reply:
    """Show an account's balance."""
    user = parse_user_name(call.path["user_id"])
    acting_user(call.caller, user)
    balance = await context.store.read(views.get_balance, user)
    return Reply(value=views.account_view(balance))


async def register(context: Context, call: Call) -> Reply:
    """Make an account, or give one that has no password its first."""
    body: Credentials = call.body
    user = parse_user_name(body.user_id)
    if not MIN_PASSWORD_CHARACTERS <= len(body.password) <= MAX_PASSWORD_CHARACTERS:
        raise InvalidRequest(
            f"A password has {MIN_PASSWORD_CHARACTERS} to {MAX_PASSWORD_CHARACTERS} characters."
        )
    settings, store = context.settings, context.store
    if not settings.registration_open:
        raise Forbidden("Registration is closed here.", hint="Ask the grid's admin for an account.")
    found = await store.read(accounts.find_user, user)
    if found is not None and (found.pw_hash is not None or not settings.is_open):
        raise Conflict(
            f"The name {user} is taken.", hint="Choose another name, or log in with its password."
        )
    hashed = await context.passwords.hash(body.password)
    if found is None:
        found = await store.run(accounts.register, settings, user, hashed)
    else:
        await store.run(accounts.set_password, found.user_id, hashed)
    return Reply(value=await _issue(context, user, found.user_id), status=201)


async def log_in(context: Context, call: Call) -> Reply:
    """Exchange a password for a token."""
    body: Credentials = call.body
    user = parse_user_name(body.user_id)
    found = await context.store.read(accounts.find_user, user)
    known_hash = None if found is None else found.pw_hash
    # An unknown name takes as long as a known one: the time says nothing.
    is_right = await context.passwords.verify(known_hash, body.password[:MAX_PASSWORD_CHARACTERS])
    if found is None or not is_right:
        raise AuthError("Name or password is wrong.")
    return Reply(value=await _issue(context, user, found.user_id))


async def _issue(context: Context, user: str, user_id: int) -> TokenView:
    issued = await context.store.run(accounts.issue_token, context.settings, user_id, _LOGIN_SCOPES)
    return TokenView(user_id=user, token=issued.token, expires_at=to_datetime(issued.expires_us))
