"""Some seconds of the fuzz that `make fuzz` runs for long: other seeds than the unit test's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gridx.resources import GIB

_ROOT = Path(__file__).parents[2]
_CASES = 10_000


@pytest.mark.parametrize("seed", [7, 8])
def test_no_message_of_a_worker_runs_code_crashes_or_takes_much_memory(seed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.chunk", str(seed), str(_CASES)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    outcome = json.loads(done.stdout)
    assert outcome["wrong"] == []
    assert outcome["peak_bytes"] < 2 * GIB


def test_a_long_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def run(count: int) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", str(count), "--out", str(tmp_path)],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.splitlines()

    first = run(60)
    assert first[0].startswith("chunk 1000: 60 cases, 0 wrong")
    assert "60 cases" in first
    again = run(90)
    assert again[0].startswith("chunk 1001: 30 cases, 0 wrong")
    assert "90 cases" in again
    assert run(90)[0] == "90 cases"
