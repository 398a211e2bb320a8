from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[4]
_CASES = 3_000


@pytest.mark.slow
def test_what_a_hostile_worker_may_send_is_refused_cleanly_or_can_be_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.chunk", "1", str(_CASES)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    outcome = json.loads(done.stdout)
    assert outcome["wrong"] == []
    assert sum(outcome["outcomes"].values()) == _CASES
