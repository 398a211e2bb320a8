"""The worker's data folder and its uid ranges: locks that the kernel keeps."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gridx.errors import SandboxError, SettingsError
from gridx.resources import Check
from worker.home import Home
from worker.sandbox.self_test import Remembered
from worker.sandbox.uids import MACHINE, REMAPPED, UIDS_IN_RANGE, UidRange, UidSpace, space_of


def test_the_id_stays_and_the_token_is_for_one_user_at_one_coordinator(tmp_path: Path) -> None:
    home = Home(tmp_path / "data")
    worker_id = home.identity.worker_id
    assert home.token_for("anna", "ws://a") is None
    home.keep_token("anna", "ws://a", "gxw_1")
    home.close()

    again = Home(tmp_path / "data")
    assert again.identity.worker_id == worker_id
    assert again.token_for("anna", "ws://a") == "gxw_1"
    assert again.token_for("anna", "ws://b") is None
    assert again.token_for("ben", "ws://a") is None
    again.keep_token("anna", "ws://a", None)
    assert again.token_for("anna", "ws://a") is None
    again.close()
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "data" / "worker.json").stat().st_mode) == 0o600


def test_a_folder_has_one_worker(tmp_path: Path) -> None:
    first = Home(tmp_path)
    with pytest.raises(SettingsError, match="Another worker"):
        Home(tmp_path)
    first.close()
    Home(tmp_path).close()


def test_a_broken_identity_is_not_replaced_silently(tmp_path: Path) -> None:
    (tmp_path / "worker.json").write_text("{")
    with pytest.raises(SettingsError, match="cannot be read"):
        Home(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="--data-dir"):
        Home(tmp_path / "file" / "data")


def test_two_workers_never_use_the_same_uids(tmp_path: Path) -> None:
    with UidRange.lock(tmp_path) as first, UidRange.lock(tmp_path) as second:
        assert first.first_uid == MACHINE.first_uid
        assert second.first_uid == MACHINE.first_uid + UIDS_IN_RANGE
    with UidRange.lock(tmp_path) as third:
        assert third.first_uid == MACHINE.first_uid


def test_a_uid_is_out_once_and_is_used_again_last(tmp_path: Path) -> None:
    with UidRange.lock(tmp_path) as uids:
        taken = [uids.take() for _ in range(3)]
        assert len(set(taken)) == 3
        uids.give_back(taken[0])
        rest = [uids.take() for _ in range(UIDS_IN_RANGE - 2)]
        assert rest[-1] == taken[0]
        with pytest.raises(SandboxError):
            uids.take()


def test_a_range_that_others_show_is_left_out(tmp_path: Path) -> None:
    space = UidSpace(200_000, 3)
    with UidRange.lock(tmp_path, space=space, taken={200_000}) as uids:
        assert uids.first_uid == 201_000
        assert 201_999 in uids
        assert 202_000 not in uids
        with (
            UidRange.lock(tmp_path, space=space, taken={200_000}, by_chance=True),
            pytest.raises(SandboxError, match="All 3 ranges"),
        ):
            UidRange.lock(tmp_path, space=space, taken={200_000})


def test_a_uid_of_another_range_does_not_come_back(tmp_path: Path) -> None:
    with UidRange.lock(tmp_path) as uids:
        uids.give_back(5)
        assert 5 not in {uids.take() for _ in range(UIDS_IN_RANGE)}


@pytest.mark.parametrize("option", ["name=rootless", "name=userns"])
def test_an_engine_that_maps_ids_gets_ids_that_it_can_map(option: str) -> None:
    recorded = {"SecurityOptions": ["name=seccomp,profile=default", option]}
    assert space_of(recorded) == REMAPPED
    assert REMAPPED.first_uid + REMAPPED.ranges * UIDS_IN_RANGE <= 65536
    assert space_of({"SecurityOptions": ["name=seccomp,profile=default"]}) == MACHINE


def test_a_link_or_a_closed_folder_in_the_place_of_the_locks_is_not_followed(
    tmp_path: Path,
) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o750)
    (tmp_path / "uids").symlink_to(target)
    with UidRange.lock(tmp_path / "uids") as uids:
        assert uids.first_uid == MACHINE.first_uid
    assert list(target.iterdir()) == []
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    own = next(path for path in tmp_path.iterdir() if path.name.startswith("uids-"))
    assert stat.S_IMODE(own.stat().st_mode) == 0o700


def test_what_passed_is_remembered_for_a_day_and_no_longer(tmp_path: Path) -> None:
    now = datetime(2026, 11, 24, tzinfo=UTC)
    clock = [now]
    remembered = Remembered(tmp_path / "passed.json", now=lambda: clock[0])
    checks = (Check(name="answers", kept=True, detail="after 5 ms"),)
    assert remembered.find("k") is None
    remembered.keep("k", checks)
    assert Remembered(tmp_path / "passed.json", now=lambda: clock[0]).find("k") == checks
    assert remembered.find("other") is None
    clock[0] = now + timedelta(hours=24)
    assert remembered.find("k") is None
    clock[0] = now - timedelta(hours=1)  # a clock that was set back proves nothing
    assert remembered.find("k") is None


def test_a_broken_record_is_as_none(tmp_path: Path) -> None:
    path = tmp_path / "passed.json"
    path.write_text('{"k": {"at": "yesterday"}}')
    remembered = Remembered(path)
    assert remembered.find("k") is None
    remembered.keep("k", ())
    assert remembered.find("k") == ()
