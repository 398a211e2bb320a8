"""The bars of ``tqdm.notebook``, in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_the_notebooks_bars_are_those_of_the_terminal() -> None:
    code = (
        "from worker.runtime.text_bars import show_bars_as_text\nshow_bars_as_text()\n"
        "import tqdm, tqdm.notebook as n\nfrom tqdm.notebook import tqdm as bar, trange\n"
        "print(bar is tqdm.std.tqdm is n.tqdm_notebook, list(trange(2)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout == "True [0, 1]\n"
    assert "100%" in ran.stderr
