"""A worker is known by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from coordinator.rules.identity import check_same_key, check_signature
from gridx.errors import Forbidden, InvalidRequest, SettingsError
from gridx.protocol import Hello
from gridx.resources import GIB, Capability
from worker.signing import Signer


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(tmp_path / "key")


def hello(signer: Signer, **changes: Any) -> Hello:
    signed_at, signature = signer.sign_hello("wrk_1", "lender")
    made = Hello(
        protocol_min=1,
        protocol_max=2,
        worker_id="wrk_1",
        name="anna",
        user="lender",
        capability=Capability(cores=1, memory_bytes=GIB, slots=1, sandbox="docker"),
        public_key=signer.public_key,
        signed_at=signed_at,
        signature=signature,
    )
    return msgspec.structs.replace(made, **changes)


def test_a_worker_that_signs_with_its_key_is_let_in(signer: Signer) -> None:
    said = hello(signer)
    check_signature(said, said.signed_at + 299)
    check_signature(said, said.signed_at - 299)


def test_a_worker_without_a_key_is_let_in_as_one_that_never_had_any(signer: Signer) -> None:
    check_signature(hello(signer, public_key="", signature=""), 0)
    check_same_key("wrk_1", "", "")


@pytest.mark.parametrize(
    "change",
    [{"user": "other"}, {"worker_id": "wrk_2"}, {"name": "x", "signature": "A" * 86 + "=="}],
)
def test_a_signature_of_something_else_is_refused(signer: Signer, change: dict[str, Any]) -> None:
    said = hello(signer, **change)
    with pytest.raises(Forbidden, match="not that of its key"):
        check_signature(said, said.signed_at)


def test_the_key_of_another_worker_is_refused(signer: Signer, tmp_path: Path) -> None:
    said = hello(signer, public_key=Signer(tmp_path / "other").public_key)
    with pytest.raises(Forbidden):
        check_signature(said, said.signed_at)


def test_a_hello_of_another_time_is_refused(signer: Signer) -> None:
    said = hello(signer)
    for now_s in (said.signed_at + 301, said.signed_at - 301):
        with pytest.raises(Forbidden, match="clock"):
            check_signature(said, now_s)
    with pytest.raises(Forbidden):
        check_signature(
            msgspec.structs.replace(said, signed_at=said.signed_at + 100), said.signed_at
        )


@pytest.mark.parametrize("change", [{"public_key": "AAAA"}, {"signature": ""}])
def test_what_is_malformed_is_refused(signer: Signer, change: dict[str, Any]) -> None:
    said = hello(signer, **change)
    with pytest.raises(InvalidRequest):
        check_signature(said, said.signed_at)


def test_a_key_never_changes_and_never_goes(signer: Signer) -> None:
    check_same_key("wrk_1", "", signer.public_key)
    check_same_key("wrk_1", signer.public_key, signer.public_key)
    for other in ("", "x"):
        with pytest.raises(Forbidden, match="another key"):
            check_same_key("wrk_1", signer.public_key, other)


def test_a_worker_keeps_its_key_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "key"
    first = Signer(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Signer(path).public_key == first.public_key
    path.write_bytes(b"short")
    with pytest.raises(SettingsError, match="no key"):
        Signer(path)
