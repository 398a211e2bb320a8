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
