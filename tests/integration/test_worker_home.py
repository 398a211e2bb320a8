"""The worker's data folder and its uid ranges: locks that the kernel keeps."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gridx.errors import SandboxError, SettingsError
from worker.home import Home
from worker.sandbox.uids import FIRST_UID, UIDS_IN_RANGE, UidRange


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
        assert first.first_uid == FIRST_UID
        assert second.first_uid == FIRST_UID + UIDS_IN_RANGE
    with UidRange.lock(tmp_path) as third:
        assert third.first_uid == FIRST_UID


def test_a_uid_is_out_once_and_is_used_again_last(tmp_path: Path) -> None:
    with UidRange.lock(tmp_path) as uids:
        taken = [uids.take() for _ in range(3)]
        assert len(set(taken)) == 3
        uids.give_back(taken[0])
        rest = [uids.take() for _ in range(UIDS_IN_RANGE - 2)]
        assert rest[-1] == taken[0]
        with pytest.raises(SandboxError):
            uids.take()
