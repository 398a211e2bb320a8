"""What this machine knows of the jobs of its notebooks, so that a restart loses none of them.

One file a job, below the data folder, readable by its owner only: a cell's text may hold what
nobody else should see. It is written before the job is sent, and tells how its results come
home: by the names that the cell binds, as the cell would have.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from gridx.ids import parse_job_id
from gridx.protocol import Position
from gridx.schemas import CellSpec

from .options import CellOptions
from .order import Order
from .visible_cell import VisibleCell

KEPT_JOBS: Final = 500
_POSITION_EVERY_S: Final = 1.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One job as it was sent. ``call`` is the newest call where the job is a session."""

    job_id: str
    call: int = 0
    notebook: str
    url: str
    user: str
    line: str
    body: str
    visible: str  # the cell as it was typed
    line_offset: int
    spec: CellSpec  # without the files that travelled
    out: tuple[str, ...] | None = None
    store_as: str | None = None
    session: str | None = None
    sent_files: dict[str, str] = {}  # path to digest
    submitted_at: float


def data_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the notebook's part of the data folder, ``~/.local/share/gridx/notebook``."""
    base = environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "gridx" / "notebook"


def notebook_name(namespace: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> str:
    """Return what names the notebook of this kernel over restarts: its path where it is known."""
    path = environ.get("JPY_SESSION_NAME") or namespace.get("__vsc_ipynb_file__")
    return str(path or Path.cwd())


class Journal:
    """The jobs of one notebook, and a look at those of the others."""

    def __init__(self, folder: Path, notebook: str) -> None:
        self._folder = folder / "jobs"
        self.notebook = notebook
        self._is_ready = False
        self._position_at_s = 0.0

    def write(self, entry: Entry) -> None:
        """Keep ``entry``. A disk that is full or read-only costs the entry, not the cell."""
        try:
            if not self._is_ready:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._prune()
                self._is_ready = True
            _write_private(self._path(entry.job_id), msgspec.json.encode(entry))
        except OSError:
            return

    def forget(self, job_id: str) -> None:
        """Drop the entry of a job that was never sent."""
        self._path(job_id).unlink(missing_ok=True)

    def find(self, job_id: str) -> Entry | None:
        """Return the entry of a job of this machine."""
        return self._read(self._path(parse_job_id(job_id)))

    def mine(self) -> Iterator[Entry]:
        """Yield the entries of this notebook, newest first."""
        for path in self._paths():
            entry = self._read(path)
            if entry is not None and entry.notebook == self.notebook:
                yield entry

    def job_ids(self) -> list[str]:
        """Return the ids of all jobs of this machine, newest first."""
        return [path.stem for path in self._paths()]

    def note_position(self, job_id: str, position: Position) -> None:
        """Remember how far the output was shown, at most once a second."""
        now_s = time.monotonic()
        is_of_the_grid = position.attempt > 0  # not of a process here, nor from the cache
        if not is_of_the_grid or now_s - self._position_at_s < _POSITION_EVERY_S:
            return
        self._position_at_s = now_s
        try:
            _write_private(self._path(job_id).with_suffix(".at"), msgspec.json.encode(position))
        except OSError:
            return

    def position(self, job_id: str) -> Position:
        """Return how far the output was shown; the start when that is not known."""
        try:
            data = self._path(parse_job_id(job_id)).with_suffix(".at").read_bytes()
            return msgspec.json.decode(data, type=Position)
        except (OSError, msgspec.MsgspecError):
            return Position()

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{job_id}.json"

    def _paths(self) -> list[Path]:
        # Ids begin with their time: by name is by age.
        return sorted(self._folder.glob("job_*.json"), reverse=True)

    def _read(self, path: Path) -> Entry | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Entry)
        except (OSError, msgspec.MsgspecError):
            return None  # not there, or of another release

    def _prune(self) -> None:
        for path in self._paths()[KEPT_JOBS:]:
            path.unlink(missing_ok=True)
            path.with_suffix(".at").unlink(missing_ok=True)


def _write_private(path: Path, data: bytes) -> None:
    # Cut afterwards: ext4 waits for the disk when a file was emptied first and closed.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(handle, data)
        os.ftruncate(handle, len(data))
    finally:
        os.close(handle)


def order_of(entry: Entry, visible: VisibleCell) -> Order:
    """Return the order that ``entry`` stands for; its inputs are gone."""
    options = CellOptions(out=entry.out, store_as=entry.store_as, session=entry.session)
    return Order(entry.line, entry.body, options, visible, entry.spec, sent_files=entry.sent_files)
