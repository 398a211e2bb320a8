"""Every protection of the sandbox taken away in turn, and a test that notices each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.weakened import WEAKENINGS

pytestmark = [pytest.mark.docker, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def test_no_protection_can_go_without_a_test_that_fails(docker_api: Any) -> None:
    """Some two minutes on two cores. ``docs/reference/hardening.md`` is this as a page."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.mutation", "--no-baseline", "--jobs", "2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    count = len(WEAKENINGS)
    assert f"{count} of {count} noticed" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 0
