"""Whether a Docker engine answers: what is said of everything that may be at its address."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gridx.engine import DEFAULT_ADDRESS, find_engine

VERSION = b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"Version": "27.1.0"}\n'


@contextmanager
def answering(reply: bytes, listening: socket.socket) -> Iterator[None]:
    """Answer one caller with ``reply``."""

    def answer() -> None:
        caller, _ = listening.accept()
        with caller:
            caller.recv(4096)
            caller.sendall(reply)

    thread = threading.Thread(target=answer)
    with listening:
        listening.listen()
        thread.start()
        yield
        thread.join()


def unix_socket(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(path))
    return made


def test_an_engine_that_answers_is_found_with_its_version(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    with answering(VERSION, unix_socket(path)):
        engine = find_engine({"DOCKER_HOST": f"unix://{path}"})
    assert (engine.answers, engine.version) == (True, "27.1.0")


def test_an_engine_at_a_tcp_address_is_found(tmp_path: Path) -> None:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    with answering(VERSION, listening):
        assert find_engine({"DOCKER_HOST": f"tcp://127.0.0.1:{port}"}).answers


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.0 200 OK\r\n\r\nhello", VERSION[:-15], b"\r\n\r\n[]"]
)
def test_another_program_at_the_address_is_told_apart(tmp_path: Path, reply: bytes) -> None:
    path = tmp_path / "docker.sock"
    with answering(reply, unix_socket(path)):
        engine = find_engine({"DOCKER_HOST": f"unix://{path}"})
    assert not engine.answers
    assert engine.reason == "the answer is not an engine's"


def test_nobody_there_is_said_in_words(tmp_path: Path) -> None:
    missing = find_engine({"DOCKER_HOST": f"unix://{tmp_path}/none.sock"})
    assert missing.reason == "no engine is running"
    left = tmp_path / "left.sock"
    unix_socket(left).close()
    assert find_engine({"DOCKER_HOST": f"unix://{left}"}).reason == "connection refused"
    assert "ssh://" in find_engine({"DOCKER_HOST": "ssh://host"}).reason


def test_without_a_setting_the_systems_socket_is_asked() -> None:
    assert find_engine({}).address == DEFAULT_ADDRESS
