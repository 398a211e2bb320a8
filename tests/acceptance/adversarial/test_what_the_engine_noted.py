"""Flags whose absence shows in no container of this engine, because something else holds too.

Whether the engine was told is what is left to be seen of them.
"""

from __future__ import annotations

from typing import Any

import pytest

from gridx.resources import GIB
from tests.support.hostile_cells import HostileCells

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def noted(cells: HostileCells) -> dict[str, Any]:
    """What the engine says of a warm container."""
    sandbox = cells.start()
    try:
        return cells.inspect(sandbox)
    finally:
        cells.kill(sandbox)


FLAGS: dict[str, tuple[tuple[str | int, ...], object]] = {
    "NetworkDisabled": (("Config", "NetworkDisabled"), True),
    "NetworkMode": (("HostConfig", "NetworkMode"), "none"),
    "Healthcheck": (("Config", "Healthcheck"), {"Test": ["NONE"]}),
    "Tty": (("Config", "Tty"), False),
    "StdinOnce": (("Config", "StdinOnce"), True),
    "Privileged": (("HostConfig", "Privileged"), False),
    "IpcMode": (("HostConfig", "IpcMode"), "private"),
    "CgroupnsMode": (("HostConfig", "CgroupnsMode"), "private"),
    "Init": (("HostConfig", "Init"), False),
    "MemorySwap": (("HostConfig", "MemorySwap"), GIB),
    "LogConfig": (("HostConfig", "LogConfig", "Type"), "none"),
    "RestartPolicy": (("HostConfig", "RestartPolicy", "Name"), "no"),
    "AutoRemove": (("HostConfig", "AutoRemove"), False),
    "Mounts BindOptions": (("HostConfig", "Mounts", 0, "BindOptions", "Propagation"), "rprivate"),
}


@pytest.mark.parametrize(
    ("path", "value"),
    [pytest.param(*row, id=flag, marks=pytest.mark.guards(flag)) for flag, row in FLAGS.items()],
)
def test_the_engine_was_told(
    noted: dict[str, Any], path: tuple[str | int, ...], value: object
) -> None:
    found: Any = noted
    for step in path:
        found = found[step]
    assert found == value


@pytest.mark.guards("LogConfig")
def test_what_a_job_writes_lies_in_no_file_of_the_machine(noted: dict[str, Any]) -> None:
    assert noted["LogPath"] == ""


@pytest.mark.guards("Tmpfs /work mode")
def test_the_work_folder_was_asked_for_as_nobody_elses(noted: dict[str, Any]) -> None:
    # Older runc lets the mode of the image's own folder win, and that is 0700 as well.
    assert "mode=0700" in noted["HostConfig"]["Tmpfs"]["/work"].split(",")
