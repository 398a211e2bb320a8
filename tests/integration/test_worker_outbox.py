"""The outbox on a real disk: what is kept, what is dropped, and what a cut file still gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridx.errors import InvalidRequest, ProtocolError
from gridx.events import Stream, encode_event, split_events
from gridx.ids import new_job_id
from gridx.protocol import AttemptFinished, AttemptRef
from gridx.resources import MIB, Usage
from gridx.states import Cause
from worker.outbox import RECENT_BYTES, SEGMENT_BYTES, Outbox, Spool


def event(number: int, size: int = 0) -> bytes:
    return encode_event(Stream(name="stdout", text=f"{number}" + "x" * size))


def report_of(ref: AttemptRef, stream_bytes: int) -> AttemptFinished:
    return AttemptFinished(
        job_id=ref.job_id,
        attempt=ref.attempt,
        cause=Cause.COMPLETED,
        exit_code=0,
        stream_bytes=stream_bytes,
        result=b"result",
        usage=Usage(wall_s=1.5),
    )


@pytest.fixture
def ref() -> AttemptRef:
    return AttemptRef(job_id=new_job_id(), attempt=2)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox")


def restored(tmp_path: Path) -> tuple[Outbox, dict[AttemptRef, Spool | None]]:
    again = Outbox(tmp_path / "outbox")
    return again, {left.ref: left.spool for left in again.restore()}


def read_all(spool: Spool, start: int, budget_bytes: int = MIB) -> bytes:
    data = b""
    while start + len(data) < spool.end:
        data += spool.read(start + len(data), budget_bytes)
    return data


def test_what_is_appended_is_read_back_in_whole_events(outbox: Outbox, ref: AttemptRef) -> None:
    outbox.begin(ref)
    spool = outbox.spool(ref)
    data = b"".join(event(i) for i in range(100))
    assert spool.append(data) == len(data)
    at = 0
    while at < len(data):
        piece = spool.read(at, 50)
        assert len(list(split_events(piece))) >= 1
        assert piece == data[at : at + len(piece)]
        at += len(piece)


def test_one_event_is_read_even_when_it_is_over_the_budget(outbox: Outbox, ref: AttemptRef) -> None:
    outbox.begin(ref)
    spool = outbox.spool(ref)
    big = event(1, 2 * RECENT_BYTES)
    spool.append(big)
    spool.append(event(2))
    assert spool.read(0, 10) == big
    assert spool.read(len(big), 10) == event(2)


def test_a_long_stream_lies_in_several_files_and_is_dropped_behind_acknowledgements(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path
) -> None:
    outbox.begin(ref)
    spool = outbox.spool(ref)
    data = b""
    for number in range(40):
        piece = event(number, 300_000)
        spool.append(piece)
        data += piece
        outbox.save(ref)
    folder = tmp_path / "outbox" / f"{ref.job_id}.2"
    files = sorted(folder.glob("*.events"))
    assert len(files) == 3
    assert read_all(spool, 0) == data

    spool.trim(SEGMENT_BYTES - 1)
    assert sorted(folder.glob("*.events")) == files
    second = int(files[1].name.split(".")[0])
    spool.trim(second)
    assert sorted(folder.glob("*.events")) == files[1:]
    assert spool.start == second
    assert read_all(spool, second) == data[second:]
    with pytest.raises(ProtocolError):
        spool.read(0, 10)
    spool.trim(len(data))
    assert list(folder.glob("*.events")) == []
    more = event(99)
    assert spool.append(more) == len(data) + len(more)
    assert spool.read(len(data), 10) == more


def test_a_finished_attempt_is_restored_with_its_stream_and_report(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path
) -> None:
    outbox.begin(ref)
    data = b"".join(event(i) for i in range(10))
    end = outbox.spool(ref).append(data)
    outbox.keep_report(report_of(ref, end))
    outbox.save(ref)
    outbox.close()
    again, found = restored(tmp_path)
    spool = found[ref]
    assert spool is not None
    assert (spool.start, spool.end) == (0, end)
    assert read_all(spool, 0) == data
    assert again.report(ref) == report_of(ref, end)


def test_an_attempt_without_a_report_died_with_its_worker(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path
) -> None:
    outbox.begin(ref)
    outbox.spool(ref).append(event(1))
    outbox.save(ref)
    outbox.close()
    assert restored(tmp_path)[1] == {ref: None}


def test_a_stream_that_was_acknowledged_to_its_end_needs_no_file(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path
) -> None:
    outbox.begin(ref)
    end = outbox.spool(ref).append(event(1))
    outbox.save(ref)
    outbox.spool(ref).trim(end)
    outbox.keep_report(report_of(ref, end))
    outbox.save(ref)
    outbox.close()
    spool = restored(tmp_path)[1][ref]
    assert spool is not None
    assert (spool.start, spool.end) == (end, end)


@pytest.mark.parametrize("cut_bytes", [1, 3, 4, 7, 20])
def test_a_cut_stream_is_not_reported_as_whole(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path, cut_bytes: int
) -> None:
    outbox.begin(ref)
    end = outbox.spool(ref).append(b"".join(event(i) for i in range(10)))
    outbox.keep_report(report_of(ref, end))
    outbox.save(ref)
    outbox.close()
    file = next((tmp_path / "outbox").rglob("*.events"))
    file.write_bytes(file.read_bytes()[:-cut_bytes])
    assert restored(tmp_path)[1] == {ref: None}


@pytest.mark.parametrize("cut_bytes", [0, 1, 2, 5, 9])
def test_a_spool_is_reopened_behind_its_last_whole_event(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path, cut_bytes: int
) -> None:
    outbox.begin(ref)
    events = [event(i, 30) for i in range(10)]
    outbox.spool(ref).append(b"".join(events))
    outbox.save(ref)
    outbox.close()
    file = next((tmp_path / "outbox").rglob("*.events"))
    file.write_bytes(file.read_bytes()[: sum(map(len, events)) - cut_bytes])
    spool = Spool.reopen(file.parent)
    assert spool.end == sum(map(len, events[: 10 if cut_bytes == 0 else 9]))
    more = event(42)
    spool.append(more)
    assert spool.read(spool.end - len(more), 100) == more
    spool.flush()
    spool.drop()
    assert Spool.reopen(file.parent).end == spool.end


def test_garbage_at_the_end_of_a_spool_is_cut_off(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path
) -> None:
    outbox.begin(ref)
    end = outbox.spool(ref).append(event(1))
    outbox.save(ref)
    outbox.close()
    file = next((tmp_path / "outbox").rglob("*.events"))
    file.write_bytes(file.read_bytes() + b"\xff\xff\xff\xff garbage")
    assert Spool.reopen(file.parent).end == end


@pytest.mark.parametrize("content", [b"", b"\x00", b"not a report", b"\x81\xa4type\xa5hello"])
def test_an_unreadable_report_is_as_none(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path, content: bytes
) -> None:
    outbox.begin(ref)
    outbox.save(ref)
    outbox.close()
    (tmp_path / "outbox" / f"{ref.job_id}.2" / "report").write_bytes(content)
    assert restored(tmp_path)[1] == {ref: None}


def test_a_half_written_report_is_not_seen(outbox: Outbox, ref: AttemptRef, tmp_path: Path) -> None:
    outbox.begin(ref)
    outbox.save(ref)
    outbox.close()
    (tmp_path / "outbox" / f"{ref.job_id}.2" / "report.part").write_bytes(b"half")
    assert restored(tmp_path)[1] == {ref: None}


def test_what_was_never_saved_leaves_no_trace(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path
) -> None:
    outbox.begin(ref)
    outbox.spool(ref).append(event(1))
    outbox.close()
    assert restored(tmp_path)[1] == {}


def test_closing_saves_a_report_that_is_not_settled(
    outbox: Outbox, ref: AttemptRef, tmp_path: Path
) -> None:
    outbox.begin(ref)
    end = outbox.spool(ref).append(event(1))
    outbox.keep_report(report_of(ref, end))
    outbox.close()
    spool = restored(tmp_path)[1][ref]
    assert spool is not None and spool.end == end


def test_what_is_forgotten_is_gone(outbox: Outbox, ref: AttemptRef, tmp_path: Path) -> None:
    outbox.begin(ref)
    outbox.spool(ref).append(event(1))
    outbox.save(ref)
    outbox.forget(ref)
    outbox.forget(ref)
    assert list((tmp_path / "outbox").iterdir()) == []


def test_a_job_id_cannot_lead_out_of_the_folder(outbox: Outbox) -> None:
    with pytest.raises(InvalidRequest):
        outbox.begin(AttemptRef(job_id="../../etc", attempt=1))


def test_other_files_in_the_folder_are_left_alone(outbox: Outbox, tmp_path: Path) -> None:
    (tmp_path / "outbox" / "notes.txt").write_text("mine")
    assert restored(tmp_path)[1] == {}
    assert (tmp_path / "outbox" / "notes.txt").exists()
