"""Open mode against everything that could reach loopback: real requests to a real coordinator."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from pathlib import Path

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from coordinator.app import Serving, serving
from coordinator.settings import Settings
from coordinator.web import guard, peers
from gridx.protocol import CLIENT_MSGPACK
from tests.support.scripted_client import Rest

JSON = "application/json"
BODY = json.dumps({"user_id": "alice", "code": "1"})


async def _raw(url: str, text: str) -> tuple[int, bytes]:
    """Send exactly these bytes; return the status and everything that came back."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text.replace("{host}", f"{host}:{port}").encode())
    await writer.drain()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split(b" ", 2)[1]), answer


async def test_the_own_programs_are_served(coordinator: Serving) -> None:
    rest = Rest(coordinator.http_url)
    assert (await rest.fetch("GET", "/health")).code == 200
    port = coordinator.http_url.rpartition(":")[2]
    for name in ("localhost", "127.0.0.1", "[::1]"):
        assert (await rest.fetch("GET", "/health", Host=f"{name}:{port}")).code == 200
    own = f"http://localhost:{port}"
    assert (await rest.fetch("GET", "/jobs", Origin=own, Sec_Fetch_Site="same-origin")).code == 200
    posted = await rest.fetch("POST", "/jobs", BODY, Content_Type=JSON, Origin=own)
    assert posted.code == 201


PROBES = [
    pytest.param({"Host": "evil.example:{port}"}, 421, "wrong_host", id="a rebound name"),
    pytest.param({"Host": "127.0.0.1.evil.example"}, 421, "wrong_host", id="a name like ours"),
    pytest.param({"Host": "127.0.0.1"}, 421, "wrong_host", id="no port"),
    pytest.param({"Host": "127.0.0.1:1"}, 421, "wrong_host", id="another port"),
    pytest.param({"Origin": "http://evil.example"}, 403, "forbidden", id="another site"),
    pytest.param({"Origin": "null"}, 403, "forbidden", id="a sandboxed frame"),
    pytest.param({"Origin": "http://127.0.0.1:1"}, 403, "forbidden", id="another local port"),
    pytest.param({"Origin": "https://127.0.0.1:{port}"}, 403, "forbidden", id="another scheme"),
    pytest.param({"Sec-Fetch-Site": "cross-site"}, 403, "forbidden", id="a cross-site link"),
    pytest.param({"Sec-Fetch-Site": "same-site"}, 403, "forbidden", id="a sibling site"),
    pytest.param({"Forwarded": "for=1.2.3.4"}, 403, "forbidden", id="a proxy, RFC 7239"),
    pytest.param({"X-Forwarded-For": "1.2.3.4"}, 403, "forbidden", id="a proxy, X-Forwarded-For"),
    pytest.param({"X-Forwarded-Proto": "https"}, 403, "forbidden", id="a proxy, -Proto"),
    pytest.param({"Via": "1.1 proxy"}, 403, "forbidden", id="a proxy, Via"),
]


def _filled(headers: dict[str, str], url: str) -> dict[str, str]:
    port = url.split("/")[2].rpartition(":")[2]
    return {name: value.replace("{port}", port) for name, value in headers.items()}


@pytest.mark.parametrize("path", ["/health", "/jobs", "/nothing", "/openapi.json"])
@pytest.mark.parametrize(("headers", "status", "code"), PROBES)
async def test_every_probe_is_refused_before_routing(
    coordinator: Serving, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    rest = Rest(coordinator.http_url)
    response = await rest.fetch("GET", path, **_filled(headers, rest.http_url))
    answer = json.loads(response.body)
    assert (response.code, answer["error"]["code"]) == (status, code)
    assert answer["error"]["hint"]
    assert "Access-Control-Allow-Origin" not in response.headers


@pytest.mark.parametrize("which", ["client", "worker"])
@pytest.mark.parametrize(("headers", "status", "code"), PROBES)
async def test_both_web_sockets_stand_behind_the_same_guard(
    coordinator: Serving, which: str, headers: dict[str, str], status: int, code: str
) -> None:
    url = coordinator.ws_url
    if which == "client":
        url = coordinator.http_url.replace("http:", "ws:") + "/ws/client"
    request = HTTPRequest(url, headers=_filled(headers, url))
    with pytest.raises(HTTPClientError) as refused:
        await websocket_connect(request, subprotocols=[CLIENT_MSGPACK])
    assert refused.value.code == status


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data", None]
)
async def test_a_form_cannot_submit_a_job_and_curl_learns_the_header(
    coordinator: Serving, kind: str | None
) -> None:
    rest = Rest(coordinator.http_url)
    headers = f"Content-Type: {kind}\r\n" if kind else ""
    code, answer = await _raw(
        rest.http_url,
        f"POST /jobs HTTP/1.1\r\nHost: {{host}}\r\nConnection: close\r\n{headers}"
        f"Content-Length: {len(BODY)}\r\n\r\n{BODY}",
    )
    assert code == 415
    assert b"-H 'Content-Type: application/json'" in answer
    assert (await rest.get("/jobs"))["jobs"] == []


async def test_a_request_without_a_host_is_refused(coordinator: Serving) -> None:
    code, _ = await _raw(coordinator.http_url, "GET /health HTTP/1.0\r\n\r\n")
    assert code in (400, 421)
    code, _ = await _raw(
        coordinator.http_url, "GET /health HTTP/1.1\r\nHost: {host}\r\nHost: evil.example\r\n\r\n"
    )
    assert code in (400, 421)


async def test_a_program_of_another_user_is_refused(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        guard.OpenGuard.__init__, "__kwdefaults__", {"uid": None, "find_uid": lambda _: 4711}
    )
    async with serving(settings) as running:
        token = (settings.data_dir / guard.TOKEN_FILE).read_text(encoding="ascii").strip()
        response = await Rest(running.http_url).fetch(
            "GET", "/jobs", Authorization=f"Bearer {token}"
        )
    assert response.code == 403
    assert b"uid 4711" in response.body


async def test_where_the_uid_cannot_be_told_the_token_of_the_file_decides(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        guard.OpenGuard.__init__, "__kwdefaults__", {"uid": None, "find_uid": lambda _: None}
    )
    async with serving(settings) as running:
        rest = Rest(running.http_url)
        path = settings.data_dir / guard.TOKEN_FILE
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        token = path.read_text(encoding="ascii").strip()
        assert (await rest.fetch("GET", "/jobs")).code == 401
        assert (await rest.fetch("GET", "/jobs", Authorization="Bearer wrong")).code == 401
        assert (await rest.fetch("GET", "/jobs", Authorization=f"Bearer {token}")).code == 200


def test_a_token_file_keeps_its_token_and_loses_wider_rights(tmp_path: Path) -> None:
    token = guard.read_or_make_token(tmp_path)
    path = tmp_path / guard.TOKEN_FILE
    path.chmod(0o644)
    assert guard.read_or_make_token(tmp_path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("family", "host", "via"),
    [
        (socket.AF_INET, "127.0.0.1", socket.AF_INET),
        (socket.AF_INET, "127.0.0.1", socket.AF_INET6),
        (socket.AF_INET6, "::1", socket.AF_INET6),
    ],
    ids=["IPv4", "IPv4 mapped into IPv6", "IPv6"],
)
def test_the_uid_of_a_peer_is_found_both_ways(
    family: socket.AddressFamily, host: str, via: socket.AddressFamily
) -> None:
    with socket.socket(family) as listening, socket.socket(via) as client:
        listening.bind((host, 0))
        listening.listen()
        port = listening.getsockname()[1]
        client.connect((f"::ffff:{host}" if via != family else host, port))
        accepted, _ = listening.accept()
        with accepted:
            assert peers.uid_of_peer(accepted) == os.getuid()
            local, remote = accepted.getpeername()[:2], accepted.getsockname()[:2]
            ends = [(peers._plain(end[0]), end[1]) for end in (local, remote)]
            assert peers._search_tables(*ends) == os.getuid()
            # A connection that is not there has no owner.
            assert peers.find_uid((host, 1), (host, port)) is None


async def test_a_refused_connection_can_be_used_again(coordinator: Serving) -> None:
    refused = "GET /jobs HTTP/1.1\r\nHost: evil\r\n\r\n"
    served = "GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    _, answer = await _raw(coordinator.http_url, refused + served)
    assert answer.count(b"HTTP/1.1 421 ") == 1
    assert answer.count(b"HTTP/1.1 200 ") == 1
