from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from coordinator.web.guard import OpenGuard, UnsupportedContent, WrongHost, check_content_type
from gridx.errors import AuthError, Forbidden

UID = 1000


def request(method: str = "GET", path: str = "/jobs", **headers: str) -> HTTPServerRequest:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection: Any = SimpleNamespace(
        context=SimpleNamespace(remote_ip="127.0.0.1", protocol="http"),
        stream=SimpleNamespace(socket=None),
        no_keep_alive=False,
    )
    return HTTPServerRequest(
        start_line=RequestStartLine(method, path, "HTTP/1.1"),
        headers=HTTPHeaders({"Host": "127.0.0.1:8081", **sent}),
        connection=connection,
    )


def guard(uid: int | None = UID) -> OpenGuard:
    return OpenGuard(port=8081, token="right", uid=UID, find_uid=lambda _: uid)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8081", "localhost:8081", "LOCALHOST:8081", "[::1]:8081"]
)
def test_the_own_names_are_served(host: str) -> None:
    guard().check(request(Host=host))


@pytest.mark.parametrize("uid", [UID + 1, 0])
def test_another_user_of_the_machine_is_refused(uid: int) -> None:
    with pytest.raises(Forbidden, match=f"uid {uid}"):
        guard(uid).check(request(Authorization="Bearer right"))


def test_where_the_uid_cannot_be_told_the_token_decides() -> None:
    with pytest.raises(AuthError, match="token"):
        guard(None).check(request())
    with pytest.raises(AuthError):
        guard(None).check(request(Authorization="Bearer wrong"))
    guard(None).check(request(Authorization="Bearer right"))


def test_the_peer_is_looked_up_once_a_connection() -> None:
    asked = []

    def find_uid(socket: object) -> int:
        asked.append(socket)
        return UID

    checked = OpenGuard(port=8081, token="t", uid=UID, find_uid=find_uid)
    first = request()
    checked.check(first)
    again = request()
    again.connection = first.connection
    checked.check(again)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:8081",
        "127.0.0.1.evil.example:8081",
        "127.0.0.1",
        "127.0.0.1:8080",
        "127.0.0.1:80810",
        "0.0.0.0:8081",
        "127.1:8081",
        "",
    ],
)
def test_a_rebound_name_is_refused(host: str) -> None:
    with pytest.raises(WrongHost):
        guard().check(request(Host=host))


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "https://127.0.0.1:8081",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
    ],
)
def test_a_foreign_origin_is_refused(origin: str) -> None:
    with pytest.raises(Forbidden):
        guard().check(request(Origin=origin))


def test_the_own_origin_is_served() -> None:
    guard().check(request(Origin="http://localhost:8081", Sec_Fetch_Site="same-origin"))


@pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
def test_a_request_of_another_site_is_refused(site: str) -> None:
    with pytest.raises(Forbidden):
        guard().check(request(Sec_Fetch_Site=site))


@pytest.mark.parametrize("header", ["Forwarded", "X_Forwarded_For", "X_Forwarded_Host", "Via"])
def test_a_request_through_a_proxy_is_refused(header: str) -> None:
    with pytest.raises(Forbidden, match="proxy"):
        guard().check(request(**{header: "1.2.3.4"}))


@pytest.mark.parametrize(
    "kind",
    [
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data; boundary=x",
        "",
        "application/jsonp",
        "text/json",
    ],
)
def test_a_body_that_a_form_could_send_is_refused_and_the_header_is_named(kind: str) -> None:
    with pytest.raises(UnsupportedContent) as refused:
        check_content_type(request("POST", Content_Type=kind, Content_Length="3"))
    assert "Content-Type: application/json" in refused.value.hint


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"'],
)
def test_json_is_taken(kind: str) -> None:
    check_content_type(request("POST", Content_Type=kind, Content_Length="3"))


def test_another_charset_is_refused() -> None:
    with pytest.raises(UnsupportedContent, match="utf-16"):
        check_content_type(
            request("POST", Content_Type="application/json; charset=utf-16", Content_Length="3")
        )


def test_a_post_without_a_body_needs_no_type() -> None:
    check_content_type(request("POST"))
    check_content_type(request("POST", Content_Length="0"))


def test_a_chunked_body_counts_as_one() -> None:
    with pytest.raises(UnsupportedContent):
        check_content_type(request("POST", Transfer_Encoding="chunked"))


def test_bytes_are_taken_where_a_blob_is_put_and_nowhere_else() -> None:
    octets = {"Content_Type": "application/octet-stream", "Content_Length": "3"}
    check_content_type(request("PUT", "/blobs/1234", **octets))
    for method, path in (("POST", "/jobs"), ("POST", "/blobs/missing"), ("PUT", "/jobs/1")):
        with pytest.raises(UnsupportedContent, match="JSON"):
            check_content_type(request(method, path, **octets))


@pytest.mark.parametrize("kind", ["application/json", "text/plain", ""])
def test_a_blob_is_declared_as_bytes(kind: str) -> None:
    with pytest.raises(UnsupportedContent, match="a blob is bytes") as refused:
        check_content_type(request("PUT", "/blobs/1234", Content_Type=kind, Content_Length="3"))
    assert "Content-Type: application/octet-stream" in refused.value.hint
