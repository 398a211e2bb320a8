"""What keeps open mode safe on loopback: checked before routing, for HTTP and both WebSockets.

Open mode asks nobody for a password, so nothing but this user's own programs may reach it. Four
ways in are shut: a web page under a name that was re-bound to 127.0.0.1 (Host), a web page under
its own name (Origin, Sec-Fetch-Site, content type), a proxy that makes strangers look local
(Forwarded and its kin), and another user of the same machine (the uid of the peer's socket; where
that cannot be told, the token of a file that only this user can read).
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from tornado.httputil import HTTPServerRequest

from gridx.blobs import OCTETS
from gridx.errors import AuthError, Forbidden, InvalidRequest

from .peers import uid_of_peer

TOKEN_FILE = "open-token"  # noqa: S105 - the name of the file, not what is in it
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
_BLOBS = "/blobs/"
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_PROXY_HEADERS = ("Forwarded", "Via")
_UTF8_NAMES = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})


class WrongHost(InvalidRequest):
    """The Host header does not name this coordinator."""

    code = "wrong_host"
    default_hint = "Address it as localhost, 127.0.0.1 or [::1], with its port."


class UnsupportedContent(InvalidRequest):
    """The body is not declared as what this address takes."""

    code = "unsupported_content_type"
    default_hint = "Send the header 'Content-Type: application/json' (curl: -H 'Content-Type: application/json')."


def read_or_make_token(data_dir: Path) -> str:
    """Return the token of the 0600 file in ``data_dir``, made on the first start."""
    path = data_dir / TOKEN_FILE
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return path.read_text(encoding="ascii").strip()
    with os.fdopen(fd, "w", encoding="ascii") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
    return token


class OpenGuard:
    """The checks of open mode for one listening port."""

    def __init__(
        self,
        *,
        port: int,
        token: str,
        uid: int | None = None,
        find_uid: Callable[..., int | None] = uid_of_peer,
    ) -> None:
        self._hosts = {f"{name}:{port}" for name in _LOOPBACK_NAMES}
        if port == 80:
            self._hosts |= set(_LOOPBACK_NAMES)
        self._origins = {f"http://{host}" for host in self._hosts}
        self._token = token.encode()
        self._uid = os.getuid() if uid is None else uid
        self._find_uid = find_uid

    def check(self, request: HTTPServerRequest) -> None:
        """Let the request through, or raise what refuses it.

        Raises:
            WrongHost, Forbidden, UnsupportedContent, AuthError
        """
        self._check_host(request)
        self._check_site(request)
        self._check_proxy(request)
        self._check_peer(request)
        check_content_type(request)

    def _check_host(self, request: HTTPServerRequest) -> None:
        host = request.headers.get("Host", "")
        if host.lower() not in self._hosts:
            raise WrongHost(f"This coordinator is not {host[:80]!r}.")

    def _check_site(self, request: HTTPServerRequest) -> None:
        origin = request.headers.get("Origin")
        if origin is not None and origin.lower() not in self._origins:
            raise Forbidden(
                f"Web pages of {origin[:80]!r} may not use this coordinator.",
                hint="Use a notebook, the command `gridx`, or a program of your own.",
            )
        if request.headers.get("Sec-Fetch-Site", "none").lower() not in ("none", "same-origin"):
            raise Forbidden(
                "Another web site sent this request.",
                hint="Open the coordinator's address yourself, in a tab of its own.",
            )

    def _check_proxy(self, request: HTTPServerRequest) -> None:
        for name in request.headers:
            if name in _PROXY_HEADERS or name.lower().startswith("x-forwarded-"):
                raise Forbidden(
                    f"The request came through a proxy (header {name}); in open mode that would"
                    " let strangers in.",
                    hint="Connect directly; a coordinator behind a proxy needs accounts.",
                )

    def _check_peer(self, request: HTTPServerRequest) -> None:
        # The peer of a connection cannot change: it is looked up once, not for every request.
        context = request.connection.context  # type: ignore[union-attr]  # HTTP/1
        if not hasattr(context, "gridx_peer_uid"):
            stream = request.connection.stream  # type: ignore[union-attr]  # same
            context.gridx_peer_uid = self._find_uid(stream.socket)
        uid = context.gridx_peer_uid
        if uid == self._uid:
            return
        if uid is not None:
            raise Forbidden(
                f"The program that connects belongs to another user of this machine (uid {uid}).",
                hint="Each user starts a coordinator of their own: `gridx up --http-port 0`.",
            )
        given = request.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode(), self._token):
            raise AuthError(
                "Whose program connects cannot be told here, so this request needs the token.",
                hint=f"Send 'Authorization: Bearer' and the text of the file {TOKEN_FILE} in the"
                " coordinator's data folder.",
            )


def has_body(request: HTTPServerRequest) -> bool:
    """Return whether the headers announce a body."""
    if "Transfer-Encoding" in request.headers:
        return True
    return request.headers.get("Content-Length", "0").strip() not in ("", "0")


def check_content_type(request: HTTPServerRequest) -> None:
    """Refuse a body that is not declared as JSON in UTF-8, or as bytes where a blob is put.

    No form of a web page can send either.
    """
    if request.method in _SAFE_METHODS or not has_body(request):
        return
    declared = request.headers.get("Content-Type", "")
    kind, *parameters = (part.strip().lower() for part in declared.split(";"))
    if request.method == "PUT" and (request.path or "").startswith(_BLOBS):
        if kind != OCTETS:
            raise UnsupportedContent(
                f"The body is declared as {kind[:80]!r}; a blob is bytes.",
                hint=f"Send the header 'Content-Type: {OCTETS}'.",
            )
        return
    if kind != "application/json":
        raise UnsupportedContent(
            f"The body is declared as {kind[:80]!r}; it has to be JSON."
            if kind
            else "The body has no Content-Type; it has to be JSON."
        )
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip(" '\"") not in _UTF8_NAMES:
            raise UnsupportedContent(
                f"The body is declared as {value.strip()[:40]!r}; JSON travels as UTF-8.",
                hint="Encode the body as UTF-8 and leave the charset out (RFC 8259, section 8.1).",
            )
