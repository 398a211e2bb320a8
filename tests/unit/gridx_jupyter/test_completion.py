"""What the cursor is offered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gridx.ids import new_job_id
from gridx_jupyter.magics.completion import complete
from gridx_jupyter.magics.journal import Journal
from gridx_jupyter.magics.line import COMMANDS
from gridx_jupyter.magics.notebook import Notebook
from gridx_jupyter.magics.options import option_names

from .test_journal import entry


def after(notebook: Notebook, line: str) -> list[str]:
    return complete(line, line.rpartition(" ")[2], notebook)


def test_options_and_their_values(notebook: Notebook) -> None:
    assert set(option_names()) <= set(after(notebook, "%%gridx --"))
    assert after(notebook, "%%gridx --cpus 2 --on-interrupt de") == ["cancel", "detach", "ask"]
    assert "html" in after(notebook, "%%gridx --progress ")


def test_names_of_variables(notebook: Notebook) -> None:
    notebook.shell.user_ns["measurements"] = 1
    assert "measurements" in after(notebook, "%%gridx --needs meas")
    assert "a,measurements" in after(notebook, "%%gridx -o a,meas")
    assert not any(name.startswith("_") for name in after(notebook, "%%gridx --out "))


def test_subcommands_and_what_follows_them(notebook: Notebook) -> None:
    assert after(notebook, "%gridx ba") == sorted(COMMANDS)
    assert "sessions" in after(notebook, "%gridx help ")
    assert "max-upload" in after(notebook, "%gridx set ")
    assert after(notebook, "%gridx set progress ") == ["auto", "text", "html", "widget", "off"]
    assert after(notebook, "%gridx session ") == ["list", "stop", "attach"]
    assert "--timeout" in after(notebook, "%gridx on --t")
    assert after(notebook, "%gridx balance ") == []


@pytest.mark.parametrize("command", ["attach", "logs", "result", "retry", "cancel"])
def test_jobs_of_this_machine(notebook: Any, tmp_path: Path, command: str) -> None:
    before, notebook.journal = notebook.journal, Journal(tmp_path, "a")
    job_id = new_job_id()
    notebook.journal.write(entry(job_id=job_id))
    assert after(notebook, f"%gridx {command} job") == [job_id]
    notebook.journal = before
