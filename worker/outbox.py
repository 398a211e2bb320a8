"""Output and reports, kept on disk until the coordinator has them.

    <data dir>/outbox/<job id>.<attempt>/
        00000000000000000000.events   the stream from that offset, whole events; several files
        call-3                        the CallFinished of a session's call, until it is settled
        report                        the AttemptFinished, present when the attempt has ended
        <digest>.blob                 a part of a large result that the coordinator has not yet

A folder without ``report`` is an attempt that died with its worker. Nothing here is synchronised
to the platter: what survives is the death of the process. After a power cut the lease expires
and the job runs again, as for every other loss that was never acknowledged.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from gridx.errors import GridXError, ProtocolError
from gridx.events import MAX_EVENT_BYTES
from gridx.ids import parse_job_id
from gridx.protocol import AttemptFinished, AttemptRef, CallFinished
from gridx.resources import KIB, MIB

_log = logging.getLogger(__name__)

SEGMENT_BYTES: Final = 4 * MIB  # a file is deleted when it is acknowledged to its end
RECENT_BYTES: Final = 256 * KIB  # of the stream's end stay in memory: sending reads no file

_FOLDER = re.compile(r"(job_[0-9a-f]{32})\.(\d{1,9})\Z")
_SEGMENT = re.compile(r"(\d{20})\.events\Z")
_CALL = re.compile(r"call-(\d{1,9})\Z")
_PREFIX_BYTES = 4

_report_encoder = msgspec.msgpack.Encoder()
_Report = AttemptFinished | CallFinished
_report_decoder: msgspec.msgpack.Decoder[_Report] = msgspec.msgpack.Decoder(_Report)


class Spool:
    """The output stream of one attempt: appended at its end, dropped from its beginning."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segments: list[tuple[int, int]] = []  # (start, end) of each file, in order
        self._next_start = 0  # of the first file, while there is none
        self._file: int | None = None
        self._recent: deque[bytes] = deque()  # the end of the stream, for reading
        self._recent_start = 0
        self._unwritten: deque[bytes] = deque()  # the end of that, not in a file yet
        self.unwritten_bytes = 0
        self.start = 0
        self.end = 0

    @classmethod
    def reopen(cls, folder: Path) -> Spool:
        """Return the spool that an earlier run left, cut behind its last whole event."""
        spool = cls(folder)
        starts = sorted(
            int(match[1]) for path in folder.iterdir() if (match := _SEGMENT.match(path.name))
        )
        for start in starts:
            if spool._segments and start != spool.end:
                break  # a hole: nothing behind it can be sent
            whole = _whole_events_bytes(spool._path(start))
            os.truncate(spool._path(start), whole)
            spool._segments.append((start, start + whole))
            spool.end = start + whole
        spool.start = spool._segments[0][0] if spool._segments else 0
        spool._recent_start = spool._next_start = spool.end
        return spool

    @classmethod
    def ended_at(cls, folder: Path, end: int) -> Spool:
        """Return the spool of a stream of ``end`` bytes of which nothing is left to keep."""
        spool = cls(folder)
        spool.start = spool.end = spool._recent_start = spool._next_start = end
        return spool

    def append(self, data: bytes) -> int:
        """Add whole events, which can be read at once, and return the new end of the stream.

        ``flush`` puts them into a file: what is sent need not wait for the disk.
        """
        self.end += len(data)
        self._recent.append(data)
        self._unwritten.append(data)
        self.unwritten_bytes += len(data)
        return self.end

    def flush(self) -> None:
        """Write what was appended; keep only the end of the stream in memory."""
        while self._unwritten:
            self._write(self._unwritten[0])
            self.unwritten_bytes -= len(self._unwritten.popleft())
        while len(self._recent) > 1 and self.end - self._recent_start > RECENT_BYTES:
            self._recent_start += len(self._recent.popleft())

    def _write(self, data: bytes) -> None:
        if self._file is None or self._segments[-1][1] - self._segments[-1][0] >= SEGMENT_BYTES:
            self._open_segment()
        assert self._file is not None
        start, end = self._segments[-1]
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        self._segments[-1] = (start, end + len(data))

    def read(self, start: int, budget_bytes: int) -> bytes:
        """Return whole events from ``start``: at least one, then while they fit the budget.

        Raises:
            ProtocolError: ``start`` is not in the spool, or not where an event begins.
        """
        if not self.start <= start < self.end:
            raise ProtocolError(f"Offset {start} is not in the spool.")
        if start >= self._recent_start:
            data = b"".join(self._recent)[start - self._recent_start :]
            return bytes(data[: _whole_prefix_bytes(data, budget_bytes)])
        segment, end = next(s for s in self._segments if s[0] <= start < s[1])
        with self._path(segment).open("rb") as file:
            file.seek(start - segment)
            prefix = file.read(_PREFIX_BYTES)
            first = _PREFIX_BYTES + int.from_bytes(prefix, "big")
            wanted = min(max(first, budget_bytes), end - start)
            data = prefix + file.read(wanted - len(prefix))
        return data[: _whole_prefix_bytes(data, budget_bytes)]

    def trim(self, offset: int) -> None:
        """Drop the files that end at ``offset`` or before it."""
        while self._segments and self._segments[0][1] <= offset:
            start, end = self._segments.pop(0)
            if not self._segments:
                self._close_segment()
                self._next_start = end
            self._path(start).unlink(missing_ok=True)
            self.start = end
        if self._segments:
            self.start = self._segments[0][0]

    def drop(self) -> None:
        """Close the file. What is not written is lost."""
        self._unwritten.clear()
        self._close_segment()

    def _open_segment(self) -> None:
        self._close_segment()
        start = self._segments[-1][1] if self._segments else self._next_start
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(self._path(start), flags, 0o600)
        self._segments.append((start, start))

    def _close_segment(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _path(self, start: int) -> Path:
        return self._folder / f"{start:020}.events"


def _whole_prefix_bytes(data: bytes, budget_bytes: int) -> int:
    """Return the length of the whole events at the head of ``data`` that fit the budget."""
    at = 0
    while at + _PREFIX_BYTES <= len(data):
        end = at + _PREFIX_BYTES + int.from_bytes(data[at : at + _PREFIX_BYTES], "big")
        if end > len(data) or (at and end > budget_bytes):
            break
        at = end
    if not at:
        raise ProtocolError("No whole event begins there.")
    return at


def _whole_events_bytes(path: Path) -> int:
    """Return how many bytes at the head of a file are whole events."""
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at + _PREFIX_BYTES <= size:
            file.seek(at)
            length = int.from_bytes(file.read(_PREFIX_BYTES), "big")
            end = at + _PREFIX_BYTES + length
            if length > MAX_EVENT_BYTES or end > size:
                break
            at = end
    return at


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What an earlier run left of an attempt that it did not see settled."""

    ref: AttemptRef
    spool: Spool | None  # None: nothing of it can be reported
    report: AttemptFinished | None = None  # its own
    calls: tuple[CallFinished, ...] = ()  # of a session, those that are not settled


class Outbox:
    """The spools and reports of every attempt that is not settled."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._spools: dict[AttemptRef, Spool] = {}
        self._reports: dict[AttemptRef, AttemptFinished] = {}
        self._saved: set[AttemptRef] = set()  # have a folder
        self._reported: set[AttemptRef] = set()  # and a report in it
        self._calls: dict[AttemptRef, dict[int, CallFinished]] = {}
        self._calls_saved: set[tuple[AttemptRef, int]] = set()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def restore(self) -> Iterator[Left]:
        """Yield what an earlier run left: finished attempts, sessions that died with their
        worker after calls that can still be reported, and whatever else died with it."""
        for path in sorted(self._folder.iterdir()):
            match = _FOLDER.match(path.name)
            if match is None:
                continue
            ref = AttemptRef(job_id=match[1], attempt=int(match[2]))
            self._saved.add(ref)
            report = _read_report(path / "report")
            calls = sorted(_read_call_reports(path), key=lambda ended: ended.call)
            last = report or (calls[-1] if calls else None)
            spool = Spool.reopen(path)
            # Everything was trimmed: the stream was acknowledged to its end.
            if last is not None and not spool.end:
                spool = Spool.ended_at(path, last.stream_bytes)
            is_cut = last is None or spool.end < last.stream_bytes
            if is_cut or (report is not None and spool.end != report.stream_bytes):
                yield Left(ref=ref, spool=None)
                continue
            self._spools[ref] = spool
            for ended in calls:
                self.keep_call_report(ended)
                self._calls_saved.add((ref, ended.call))
            if isinstance(report, AttemptFinished):
                self._reports[ref] = report
                self._reported.add(ref)
            yield Left(ref=ref, spool=spool, report=self._reports.get(ref), calls=tuple(calls))

    def begin(self, ref: AttemptRef) -> None:
        """Take the attempt up, in memory."""
        self._spools[ref] = Spool(self._path(ref))

    def save(self, ref: AttemptRef) -> None:
        """Put on disk what is not there yet: that this worker runs the attempt, its output, and
        its report, whole or not at all.

        Raises:
            OSError: the disk is full or gone.
        """
        spool = self._spools.get(ref)
        if spool is None:
            return
        folder = self.folder(ref)
        spool.flush()
        for call, ended in self._calls.get(ref, {}).items():
            if (ref, call) not in self._calls_saved:
                _write_report(folder / f"call-{call}", ended)
                self._calls_saved.add((ref, call))
        report = self._reports.get(ref)
        if report is not None and ref not in self._reported:
            _write_report(folder / "report", report)
            self._reported.add(ref)

    def folder(self, ref: AttemptRef) -> Path:
        """Return the attempt's folder, which is there from now on.

        Raises:
            OSError: the disk is full or gone.
        """
        folder = self._path(ref)
        if ref not in self._saved:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._saved.add(ref)
        return folder

    def spool(self, ref: AttemptRef) -> Spool:
        """Return the attempt's output stream."""
        return self._spools[ref]

    def keep_report(self, report: AttemptFinished) -> None:
        """Keep the report until ``forget``; ``save`` puts it on disk."""
        ref = AttemptRef(job_id=report.job_id, attempt=report.attempt)
        self._reports[ref] = report
        self._reported.discard(ref)  # it may be another than before

    def report(self, ref: AttemptRef) -> AttemptFinished:
        """Return the attempt's report."""
        return self._reports[ref]

    def keep_call_report(self, report: CallFinished) -> None:
        """Keep the report of a session's call until ``forget_call``, likewise."""
        ref = AttemptRef(job_id=report.job_id, attempt=report.attempt)
        self._calls.setdefault(ref, {})[report.call] = report
        self._calls_saved.discard((ref, report.call))

    def call_report(self, ref: AttemptRef, call: int) -> CallFinished:
        """Return the report of a session's call."""
        return self._calls[ref][call]

    def forget_call(self, ref: AttemptRef, call: int) -> None:
        """Remove the report of a session's call."""
        self._calls.get(ref, {}).pop(call, None)
        if (ref, call) in self._calls_saved:
            self._calls_saved.discard((ref, call))
            (self._path(ref) / f"call-{call}").unlink(missing_ok=True)

    def forget(self, ref: AttemptRef) -> None:
        """Remove all that is kept of the attempt."""
        spool = self._spools.pop(ref, None)
        if spool is not None:
            spool.drop()
        self._reports.pop(ref, None)
        self._reported.discard(ref)
        for call in self._calls.pop(ref, {}):
            self._calls_saved.discard((ref, call))
        if ref in self._saved:
            self._saved.discard(ref)
            shutil.rmtree(self._path(ref), ignore_errors=True)

    def close(self) -> None:
        """Save every attempt that has ended and is not settled, and close the files."""
        for ref, spool in self._spools.items():
            if ref in self._reports or self._calls.get(ref):
                self.save(ref)
            spool.drop()

    def _path(self, ref: AttemptRef) -> Path:
        return self._folder / f"{parse_job_id(ref.job_id)}.{ref.attempt}"


def _write_report(path: Path, report: _Report) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(_report_encoder.encode(report))
    part.rename(path)


def _read_report(path: Path) -> _Report | None:
    try:
        return _report_decoder.decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, GridXError) as error:
        _log.warning("a report is unreadable", extra={"action": "restore", "error": str(error)})
        return None


def _read_call_reports(folder: Path) -> Iterator[CallFinished]:
    for path in folder.iterdir():
        if _CALL.match(path.name):
            report = _read_report(path)
            if isinstance(report, CallFinished):
                yield report
