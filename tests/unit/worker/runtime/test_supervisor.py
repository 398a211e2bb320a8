"""The command line of the supervisor."""

from __future__ import annotations

import os
import resource

import pytest

from gridx.errors import ProtocolError
from worker.runtime.supervisor import descendants, parse_options


def test_in_a_container_there_is_nothing_to_say() -> None:
    options = parse_options([])
    assert (options.process, options.filtered, options.limits) == (False, True, ())


def test_a_process_sandbox_has_limits_and_no_filter() -> None:
    options = parse_options(["--process", "--limit", "as=1024", "--limit", "nofile=64"])
    assert (options.process, options.filtered) == (True, False)
    assert options.limits == ((resource.RLIMIT_AS, 1024), (resource.RLIMIT_NOFILE, 64))


@pytest.mark.parametrize(
    "words", [["--what"], ["--limit"], ["--limit", "as"], ["--limit", "as=-1"], ["--limit", "x=1"]]
)
def test_an_option_that_is_not_understood_is_refused(words: list[str]) -> None:
    with pytest.raises(ProtocolError):
        parse_options(words)


def test_a_process_is_not_its_own_descendant() -> None:
    assert os.getpid() not in descendants(os.getpid())
