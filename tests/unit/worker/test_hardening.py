"""Every option of a container is known to the run that takes it away (``make mutations``)."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridx.resources import GIB, ResourceRequest
from tests.mutation.page import PAGE
from tests.support.weakened import FUNCTIONAL, RUNTIME, WEAKENINGS, keys_of, weakened_options
from worker.sandbox.limits import container_options

ASKED = container_options(
    ResourceRequest(), image="sha256:1", uid=200_007, worker_id="wrk_1", pool_id="p", inputs="/slot"
)


def test_every_option_is_taken_away_in_turn_or_holds_nothing_off() -> None:
    """A new flag without a row, and so without a test that fails without it, ends here."""
    assert keys_of(ASKED) - set(WEAKENINGS) - set(FUNCTIONAL) == set()


def test_no_option_of_the_table_is_one_that_nobody_asks_for_any_more() -> None:
    extra = {
        *("Cmd -I", "distinct uid", "Env", "Labels without secrets", "network", "seccomp"),
        *(flag for flag, row in WEAKENINGS.items() if row.module),
    }
    assert set(WEAKENINGS) - extra <= keys_of(ASKED)
    assert set(FUNCTIONAL) <= keys_of(ASKED)
    assert not set(WEAKENINGS) & set(FUNCTIONAL)


@pytest.mark.parametrize("flag", WEAKENINGS)
def test_without_it_the_container_or_the_runtime_is_another(flag: str, tmp_path: Path) -> None:
    weakened = weakened_options(flag, tmp_path)(
        ResourceRequest(memory_bytes=GIB),
        image="sha256:1",
        uid=200_007,
        worker_id="wrk_1",
        pool_id="p",
        inputs="/slot",
    )
    assert weakened != ASKED
    if module := WEAKENINGS[flag].module:
        own = (RUNTIME / module).read_text()
        assert (tmp_path / module).read_text().startswith(own)


def test_the_page_has_a_row_and_a_test_for_each() -> None:
    page = PAGE.read_text()
    for flag in WEAKENINGS:
        assert f"\n| {flag}" in page
    assert "| `::" not in page
