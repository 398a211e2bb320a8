"""What this machine remembers of its jobs."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gridx.ids import new_job_id
from gridx.protocol import Position
from gridx.schemas import CellSpec
from gridx_jupyter.magics import journal as journal_module
from gridx_jupyter.magics.journal import Entry, Journal, notebook_name, order_of
from gridx_jupyter.magics.visible_cell import VisibleCell


def entry(notebook: str = "a.ipynb", **fields: Any) -> Entry:
    made = Entry(
        job_id=new_job_id(),
        notebook=notebook,
        url="http://127.0.0.1:1",
        user="ada",
        line="--out x",
        body="x = 1\n",
        visible="%%gridx --out x\nx = 1\n",
        line_offset=1,
        spec=CellSpec(python="3.11", expected=("x",), out=("x",)),
        out=("x",),
        submitted_at=1.0,
    )
    return msgspec.structs.replace(made, **fields)


def test_an_entry_is_private_and_found_by_a_later_kernel(tmp_path: Path) -> None:
    kept = entry()
    Journal(tmp_path, "a.ipynb").write(kept)
    assert Journal(tmp_path, "b.ipynb").find(kept.job_id) == kept
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in files] == [0o600]
    assert stat.S_IMODE((tmp_path / "jobs").stat().st_mode) == 0o700


def test_a_notebook_knows_its_own_jobs_newest_first(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "a.ipynb")
    first = entry(job_id="job_" + "1" * 32)
    second = entry(job_id="job_" + "2" * 32)
    for kept in (first, second, entry("b.ipynb")):
        journal.write(kept)
    assert list(journal.mine()) == [second, first]
    assert len(journal.job_ids()) == 3


def test_a_job_that_was_refused_is_forgotten(tmp_path: Path) -> None:
    journal, kept = Journal(tmp_path, "a.ipynb"), entry()
    journal.write(kept)
    journal.forget(kept.job_id)
    assert journal.find(kept.job_id) is None


def test_only_the_newest_jobs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "KEPT_JOBS", 2)
    for n in range(5):
        Journal(tmp_path, "a.ipynb").write(entry(job_id=f"job_{n:032x}"))
    assert Journal(tmp_path, "a.ipynb").job_ids() == [f"job_{n:032x}" for n in (4, 3, 2)]


def test_a_broken_entry_is_no_entry(tmp_path: Path) -> None:
    journal, kept = Journal(tmp_path, "a.ipynb"), entry()
    journal.write(kept)
    (tmp_path / "jobs" / f"{kept.job_id}.json").write_text("{")
    assert journal.find(kept.job_id) is None
    assert list(journal.mine()) == []


def test_the_place_of_the_output_is_remembered(tmp_path: Path) -> None:
    journal, kept = Journal(tmp_path, "a.ipynb"), entry()
    journal.write(kept)
    assert journal.position(kept.job_id) == Position()
    journal.note_position("local", Position())
    assert not list(tmp_path.rglob("local*"))
    journal.note_position(kept.job_id, Position(attempt=1, offset=7))
    assert journal.position(kept.job_id) == Position(attempt=1, offset=7)


def test_a_disk_that_cannot_be_written_costs_no_cell(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file where the folder should be")
    Journal(tmp_path, "a.ipynb").write(entry())


def test_the_notebook_is_named_by_its_path_where_the_server_tells_it(tmp_path: Path) -> None:
    assert notebook_name({}, {"JPY_SESSION_NAME": "/x/a.ipynb"}) == "/x/a.ipynb"
    assert notebook_name({"__vsc_ipynb_file__": "/y/b.ipynb"}, {}) == "/y/b.ipynb"
    assert notebook_name({}, {}) == str(Path.cwd())


def test_an_entry_is_an_order_that_binds_what_the_cell_would_have(tmp_path: Path) -> None:
    order = order_of(entry(), VisibleCell("<cell>", 1, ""))
    assert order.expected == {"x"}
    assert order.spec.out == ("x",)
    assert order.captured is None
    assert order.stayed_here == ()
