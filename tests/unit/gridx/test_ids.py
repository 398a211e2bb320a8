from __future__ import annotations

import uuid

import pytest

from gridx.errors import InvalidRequest
from gridx.ids import (
    new_job_id,
    new_worker_id,
    parse_job_id,
    parse_user_name,
    parse_worker_id,
)


def test_a_new_id_is_a_version_7_uuid_with_a_prefix() -> None:
    job_id, worker_id = new_job_id(), new_worker_id()
    assert parse_job_id(job_id) == job_id
    assert parse_worker_id(worker_id) == worker_id
    value = uuid.UUID(job_id.removeprefix("job_"))
    assert (value.version, value.variant) == (7, uuid.RFC_4122)


def test_ids_made_later_sort_later(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for ms in range(1_800_000_000_000, 1_800_000_000_020):
        monkeypatch.setattr("time.time_ns", lambda ms=ms: ms * 1_000_000)
        made.append(new_job_id())
    assert made == sorted(made)
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    "text", ["", "job_", "job_" + "G" * 32, "job_" + "0" * 33, "wrk_" + "0" * 32, "x" * 500]
)
def test_what_is_no_job_id_is_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a job id") as caught:
        parse_job_id(text)
    assert len(caught.value.message) < 150


@pytest.mark.parametrize("text", ["", "wrk_1", "job_" + "0" * 32, "wrk_" + "0" * 32 + "\n"])
def test_what_is_no_worker_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a worker id"):
        parse_worker_id(text)


@pytest.mark.parametrize("name", ["a", "ada", "Ada.Lovelace-1_x@example.org", "0", "x" * 64])
def test_user_names_that_people_have_are_taken(name: str) -> None:
    assert parse_user_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "x" * 65, "-ada", ".ada", "a b", "a/b", "ada\n", "äda", "a\0"]
)
def test_other_user_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a user name"):
        parse_user_name(name)
