from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[4]


def test_changed_messages_are_refused_cleanly_or_give_values_that_can_be_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.gridx.codec.fuzz", "1", "10000"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    assert "wrong: 0" in done.stdout
