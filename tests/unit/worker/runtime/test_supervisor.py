"""The command line of the supervisor."""

from __future__ import annotations

import os
import resource

import pytest

from gridx.errors import ProtocolError
from worker.runtime.processes import descendants
from worker.runtime.supervisor import Allowance, parse_options


def test_in_a_container_there_is_nothing_to_say() -> None:
    options = parse_options([])
    assert (options.process, options.filtered, options.limits) == (False, True, ())


def test_a_process_sandbox_has_limits_a_filter_and_namespaces() -> None:
    options = parse_options(["--process", "--limit", "as=1024", "--limit", "nofile=64"])
    assert (options.process, options.filtered, options.namespaces) == (True, True, ())
    assert options.limits == ((resource.RLIMIT_AS, 1024), (resource.RLIMIT_NOFILE, 64))
    words = [
        "--process",
        "--unfiltered",
        "--namespace",
        "user",
        "--namespace",
        "net",
        "--hide",
        "/a",
    ]
    options = parse_options([*words, "--work-bytes", "4096", "--keep", "/b"])
    assert (options.filtered, options.namespaces) == (False, ("user", "net"))
    assert (options.work_bytes, options.keep, options.hide) == (4096, ("/b",), ("/a",))


@pytest.mark.parametrize(
    "words",
    [
        ["--what"],
        ["--limit"],
        ["--limit", "as"],
        ["--limit", "as=-1"],
        ["--limit", "x=1"],
        ["--work-bytes", "x"],
    ],
)
def test_an_option_that_is_not_understood_is_refused(words: list[str]) -> None:
    with pytest.raises(ProtocolError):
        parse_options(words)


def test_a_process_is_not_its_own_descendant() -> None:
    assert os.getpid() not in descendants(os.getpid())


def test_frames_are_bounded_in_number_and_a_pause_gives_room_again() -> None:
    allowance = Allowance(per_s=10, burst=3, now_s=0.0)
    sent = 0
    for _ in range(10):
        if allowance.is_open(0.0):
            allowance.take()
            sent += 1
    assert sent == 3
    assert allowance.is_open(0.1)
    allowance.take()
    assert not allowance.is_open(0.1)
    assert allowance.is_open(100.0)
