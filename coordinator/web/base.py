"""Who is calling, body to schema, error to status and JSON."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from gridx import errors
from gridx.resources import MIB
from gridx.schemas import ErrorEnvelope

from ..rules.access import Caller
from .guard import UnsupportedContent, WrongHost

if TYPE_CHECKING:
    from .context import Context

_log = logging.getLogger(__name__)

# A megabyte of code may be six of JSON, when every character is written as \uXXXX.
MAX_BODY_BYTES = 8 * MIB


class MethodNotAllowed(errors.InvalidRequest):
    """The address exists, but not with this method."""

    code = "method_not_allowed"


class UnknownRoute(errors.NotFound):
    """No such address."""

    code = "unknown_route"
    default_hint = "GET /openapi.json lists every address; GET / shows them for people."


class Internal(errors.GridXError):
    """A fault of the coordinator itself."""

    code = "internal"
    default_hint = "Look at the coordinator's log; if it goes on, report it with those lines."


STATUS: Mapping[type[errors.GridXError], int] = {
    errors.InvalidRequest: 400,
    errors.UnknownLanguage: 422,
    errors.ProtocolError: 400,
    errors.AuthError: 401,
    errors.InsufficientCredits: 402,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    MethodNotAllowed: 405,
    errors.Conflict: 409,
    errors.AlreadySettled: 409,
    errors.StaleLease: 409,
    errors.PayloadTooLarge: 413,
    UnsupportedContent: 415,
    WrongHost: 421,
    errors.NotBuilt: 501,
    errors.StorageError: 507,
    errors.GridXError: 500,
}


def status_of(error: errors.GridXError) -> int:
    """Return the HTTP status of an error: that of the nearest class in the table."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def envelope(error: errors.GridXError) -> bytes:
    """Return the body of an error."""
    body = error.to_body()
    return msgspec.json.encode(ErrorEnvelope(error=msgspec.to_builtins(body), detail=body.message))


def as_gridx_error(exc: BaseException) -> errors.GridXError:
    """Return ``exc`` as something that can be shown; what is not ours is logged and hidden."""
    if isinstance(exc, errors.GridXError):
        return exc
    _log.error("A request failed", exc_info=exc, extra={"action": "web.failed"})
    return Internal("The coordinator failed at this request.")


T = TypeVar("T")


def decode_body(body: bytes, kind: type[T]) -> T:
    """Return ``body`` as ``kind``.

    Raises:
        InvalidRequest: not JSON, not an object, or a field is missing, unknown or of another type;
            the message names the field by its path.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as exc:
        raise errors.InvalidRequest(f"The body does not fit: {exc}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise errors.InvalidRequest(
            f"The body is not JSON: {exc}.", hint="Send one JSON object, encoded as UTF-8."
        ) from None


def decode_query(arguments: Mapping[str, list[bytes]], kind: type[T]) -> T:
    """Return the query string as ``kind``; numbers are read from text.

    Raises:
        InvalidRequest: a name is unknown, given twice, or its value does not fit.
    """
    values: dict[str, str] = {}
    for name, given in arguments.items():
        if len(given) != 1:
            raise errors.InvalidRequest(f"The query names {name[:80]!r} {len(given)} times.")
        try:
            values[name] = given[0].decode("utf-8")
        except UnicodeDecodeError:
            raise errors.InvalidRequest(f"The value of {name[:80]!r} is not UTF-8.") from None
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise errors.InvalidRequest(f"The query does not fit: {exc}.") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, checked and decoded. ``body`` and ``query`` are of the route's types.

    ``pieces`` are the body of a route that takes bytes, as it came, under the name of its content
    coding (None: raw); ``accepts`` are the codings that the caller can undo.
    """

    caller: Caller
    path: Mapping[str, str] = field(default_factory=dict)
    query: Any = None
    body: Any = None
    last_event_id: str | None = None
    pieces: Sequence[bytes] = ()
    encoding: str | None = None
    accepts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer: a struct that becomes JSON, or text or bytes of another type."""

    value: Any = None
    status: int = 200
    text: str | None = None
    data: bytes | None = None
    encoding: str | None = None  # of ``data``
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class EventStream:
    """An answer that goes on: server-sent events, each sent as soon as it is yielded."""

    events: AsyncIterator[bytes]


Endpoint = Callable[["Context", Call], Awaitable[Reply | EventStream]]
