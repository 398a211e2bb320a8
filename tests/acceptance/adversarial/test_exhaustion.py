"""What the kernel has a limited number of: a job may use up its own, and nobody else's."""

from __future__ import annotations

from typing import Any

import pytest

from gridx.resources import MIB
from tests.support.hostile_cells import HostileCells

pytestmark = pytest.mark.docker

INOTIFY = """
def instances(most):
    made = 0
    while made < most and _libc.inotify_init() >= 0:
        made += 1
    return made
"""


@pytest.mark.guards("distinct uid", "User")
def test_a_job_that_takes_every_inotify_instance_leaves_another_its_own(
    cells: HostileCells,
) -> None:
    greedy, other = cells.start(), cells.start()
    try:
        cells.begin(greedy, INOTIFY + "print(instances(10**6), flush=True)\ntime.sleep(60)")
        found = cells.probe_in(other, INOTIFY + "say(made=instances(8))")
    finally:
        cells.kill(greedy, other)
    assert found["made"] == 8


@pytest.fixture(scope="module")
def exhausted(cells: HostileCells) -> dict[str, Any]:
    """One container that uses up one thing after the other, and still answers."""
    return cells.probe(
        """
import fcntl, subprocess
def until_refused(act, most=100_000):
    kept = []
    try:
        while len(kept) < most:
            kept.append(act())
    except OSError as error:
        return len(kept), errno.errorcode[error.errno]
    finally:
        for fds in kept:
            for fd in fds:
                os.close(fd)
    return len(kept), "done"
def pipe():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    tried(fcntl.fcntl, writing, 1031, 1 << 20)
    try:
        while True:
            os.write(writing, bytes(1 << 16))
    except BlockingIOError:
        return reading, writing
def pair():
    one, two = socket.socketpair()
    one.setblocking(False)
    try:
        while True:
            one.send(bytes(1 << 16))
    except BlockingIOError:
        return one.detach(), two.detach()
def program(*arguments, **more):
    return tried(lambda: subprocess.run(["true", *arguments], **more))
say(
    descriptors=until_refused(lambda: (os.dup(0),)),
    pipes=until_refused(pipe),
    pairs=until_refused(pair),
    instances=INSTANCES,
    argument=program("x" * 200_000),
    arguments=program(*["x" * 100_000] * 30),
    environment=program(env={"A": "x" * 140_000}),
    queue=_libc.mq_open(b"/q", 0o102, 0o600, None),
    after=program(),
)
""".replace("INSTANCES", "instances(10**6)").replace("import fcntl", INOTIFY + "import fcntl"),
        memory_bytes=512 * MIB,
    )


@pytest.mark.guards("Ulimits nofile")
@pytest.mark.parametrize("what", ["descriptors", "pipes", "pairs"])
def test_descriptors_end_at_their_number(exhausted: dict[str, Any], what: str) -> None:
    made, why = exhausted[what]
    assert why == "EMFILE"
    assert made <= 1024


@pytest.mark.parametrize("what", ["argument", "arguments", "environment"])
def test_arguments_and_environments_have_a_size(exhausted: dict[str, Any], what: str) -> None:
    assert exhausted[what] == "E2BIG"


@pytest.mark.guards("Ulimits msgqueue")
def test_there_are_no_message_queues(exhausted: dict[str, Any]) -> None:
    assert exhausted["queue"] == -1


def test_inotify_instances_end_and_a_job_goes_on(exhausted: dict[str, Any]) -> None:
    assert 0 < exhausted["instances"] < 1024
    assert exhausted["after"] == "done"
