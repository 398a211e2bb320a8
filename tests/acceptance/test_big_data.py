"""Big variables, big results and files: a client, a coordinator, a worker and real containers."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridx.blobs import to_blob
from gridx.blocking import BlockingClient
from gridx.codec.results import Applied, apply_result
from gridx.events import ErrorOutput, join_text
from gridx.resources import MIB
from gridx.schemas import CellSpec, FileSpec
from gridx.ship.capture import capture
from gridx.updates import EventArrived, Finished
from tests.support.programs import Coordinator, Worker, grid, wait_for

pytestmark = pytest.mark.docker
OPTIONS = ("--warm", "1", "--cores", "1", "--memory", "2G")


class Cell:
    """One cell that has run: what came of it."""

    def __init__(self, finished: Finished, said: list[Any], sent_bytes: int) -> None:
        self.finished = finished
        self.stdout = join_text(said, "stdout")
        self.stderr = join_text(said, "stderr")
        self.errors = [event.error for event in said if isinstance(event, ErrorOutput)]
        self.sent_bytes = sent_bytes
        self.applied: Applied | None = None


def run(
    client: BlockingClient,
    code: str,
    namespace: dict[str, Any],
    *,
    files: tuple[FileSpec, ...] = (),
    **spec: Any,
) -> Cell:
    """Run ``code`` on the grid, with what it needs of ``namespace``; apply what comes home."""
    namespace.setdefault("__name__", "__main__")
    sent = capture(code, namespace, with_blobs=True)
    cell = CellSpec(
        python=sent.python,
        expected=tuple(sorted(sent.expected)),
        inputs=tuple(sorted(sent.inputs)),
        files=(*sent.files, *files),
        **spec,
    )
    job = client.submit(code, cell=cell, inputs=sent.payload, blobs=sent.blobs, timeout_s=120)
    said = [u.event for u in job.updates() if isinstance(u, EventArrived)]
    assert job.finished is not None
    ran = Cell(job.finished, said, job.sent_bytes)
    data: Any = job.finished.result
    if job.finished.result_blobs:
        data = client.download(job.id, job.finished.result_blobs)
    if data is not None:
        ran.applied = apply_result(data, namespace, expected=sent.expected, cell_source=code)
    return ran


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Coordinator, Worker]]:
    with grid(tmp_path_factory.mktemp("grid"), worker_options=OPTIONS) as pair:
        yield pair


@pytest.fixture
def client(running: tuple[Coordinator, Worker]) -> Iterator[BlockingClient]:
    with BlockingClient(url=running[0].http_url, user="anna") as made:
        yield made


def fetched(worker: Worker) -> list[int]:
    """Return, job by job, how many bytes of blobs the worker has fetched."""
    logs = [json.loads(line) for line in worker.lines if line.startswith("{")]
    return [line["fetched_bytes"] for line in logs if line.get("action") == "blobs"]


@pytest.mark.slow
def test_a_400_mb_array_goes_there_and_home_through_a_sandbox_of_1_gib(
    running: tuple[Coordinator, Worker], client: BlockingClient
) -> None:
    _, worker = running
    namespace: dict[str, Any] = {"big": np.random.default_rng(1).random(50_000_000)}
    big = namespace["big"]
    expected = big.copy()
    expected[7] = 42.0
    before = len(fetched(worker))

    ran = run(client, "big[7] = 42.0\ntotal = float(big[:10].sum())", namespace)
    assert ran.finished.view.status == "completed", ran.stderr
    assert ran.finished.result is None and len(ran.finished.result_blobs) == 48
    assert namespace["big"] is big  # changed in place, for every other name of it
    assert np.array_equal(big, expected)
    assert namespace["total"] == pytest.approx(float(expected[:10].sum()))
    assert ran.sent_bytes > 300e6

    # It differs in one chunk from what was sent: one chunk travels, to the coordinator and on.
    ran = run(client, "last = float(big[-1])", namespace)
    assert namespace["last"] == big[-1]
    assert ran.sent_bytes < 9 * MIB
    first, second = fetched(worker)[before:]
    assert first == 400_000_000 and second <= 8 * MIB

    ran = run(client, "last = float(big[-2])", namespace)
    assert ran.sent_bytes < 4_000_000  # under 1 %
    assert fetched(worker)[-1] == 0


def test_the_second_job_of_a_user_fetches_nothing_and_another_user_everything(
    running: tuple[Coordinator, Worker], client: BlockingClient
) -> None:
    coordinator, worker = running
    namespace: dict[str, Any] = {"a": np.random.default_rng(2).random(1_000_000)}
    before = len(fetched(worker))
    for _ in range(2):
        run(client, "s = float(a.sum())", namespace)
    with BlockingClient(url=coordinator.http_url, user="bob") as bob:
        run(bob, "s = float(a.sum())", dict(namespace))
    assert fetched(worker)[before:] == [8_000_000, 0, 8_000_000]


def test_a_large_new_result_comes_home_whole(client: BlockingClient) -> None:
    namespace: dict[str, Any] = {}
    code = "import numpy as np\nr = np.arange(4_000_000) * 3\nnoise = np.random.bytes(20_000_000)"
    ran = run(client, code, namespace)
    assert ran.finished.result_blobs, ran.stderr
    assert np.array_equal(namespace["r"], np.arange(4_000_000) * 3)
    assert len(namespace["noise"]) == 20_000_000


def test_a_result_of_15_mib_stays_in_its_message(client: BlockingClient) -> None:
    namespace: dict[str, Any] = {}
    ran = run(client, "r = bytes(14_000_000)", namespace)
    assert ran.finished.result is not None and not ran.finished.result_blobs
    assert namespace["r"] == bytes(14_000_000)


def test_a_result_of_more_than_2_gib_stays_there_and_the_largest_are_named(
    client: BlockingClient,
) -> None:
    namespace: dict[str, Any] = {}
    code = "import numpy as np\nhuge = np.zeros(2**28 + 2**20)\nsmall = 1\nprint('done')"
    ran = run(client, code, namespace)
    assert ran.finished.view.status == "completed"
    assert ran.stdout == "done\n"
    assert "takes 2.0 GiB, more than the 2 GiB that may come" in ran.stderr, ran.stderr
    assert "The largest: huge (2.0 GiB). " in ran.stderr
    assert "--out" in ran.stderr
    assert "huge" not in namespace and "small" not in namespace


# ---------------------------------------------------------------- files


def test_files_go_there_and_come_home(client: BlockingClient) -> None:
    data = np.random.default_rng(3).bytes(9_000_000)
    parts = [to_blob(memoryview(data)[: 8 * MIB]), to_blob(memoryview(data)[8 * MIB :])]
    files = (
        FileSpec(path="in/table.csv", data=b"a,b\n1,2\n"),
        FileSpec(path="helper_of_mine.py", kind="module", data=b"def double(x): return 2 * x"),
        FileSpec(path="large.bin", blobs=tuple(part.ref for part in parts)),
    )
    code = """
import os, helper_of_mine
rows = open("in/table.csv").read()
size = os.path.getsize("large.bin")
os.makedirs("out/deep")
open("out/a.txt", "w").write("a")
open("out/deep/b.bin", "wb").write(open("large.bin", "rb").read())
doubled = helper_of_mine.double(21)
"""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cell = CellSpec(
        python=capture("", namespace).python,
        expected=("rows", "size", "doubled"),
        files=files,
        fetch=("out/**", "*.png"),
    )
    job = client.submit(code, cell=cell, blobs=parts, timeout_s=60)
    said = [u.event for u in job.updates() if isinstance(u, EventArrived)]
    assert job.finished is not None
    assert job.finished.view.status == "completed", said
    result = client.download(job.id, job.finished.result_blobs) or job.finished.result
    applied = apply_result(
        job.finished.result or result, namespace, expected=set(cell.expected), cell_source=code
    )
    assert (namespace["rows"], namespace["size"], namespace["doubled"]) == (
        "a,b\n1,2\n",
        9_000_000,
        42,
    )
    home = {name: bytes(contents) for name, contents in applied.files}
    assert home == {"out/a.txt": b"a", "out/deep/b.bin": data}
    assert "No file matches '*.png'." in join_text(said, "stderr")


def test_hostile_names_of_files_lay_nothing_out_and_bring_nothing_home(
    client: BlockingClient,
) -> None:
    for path in ("../up", "/etc/cron.d/job", "a/../../b"):
        ran = run(client, "print('ran')", {}, files=(FileSpec(path=path, data=b"x"),))
        assert ran.finished.view.status == "failed"
        assert ran.stdout == ""
        assert "not a path below the job's folder" in str(ran.errors)
    code = """
import os
os.symlink("/etc/passwd", "link")
os.symlink("/etc", "folder")
os.mkfifo("pipe")
open("ok", "w").write("ok")
open(b"bad\\xff", "w").write("x")
open("bell\\x07", "w").write("x")
"""
    ran = run(client, code, {}, fetch=("*", "folder/passwd", "../*", "/etc/passwd"))
    assert ran.applied is not None, ran.errors
    assert [(name, bytes(data)) for name, data in ran.applied.files] == [("ok", b"ok")]
    assert ran.stderr.count("--fetch: ") == 8, ran.stderr


def test_the_prelude_runs_before_the_cell_and_says_nothing(client: BlockingClient) -> None:
    namespace: dict[str, Any] = {"x": 1}
    ran = run(
        client, "y = x + offset\ny", namespace, prelude="offset = 10\nprint('unheard')\noffset"
    )
    assert namespace["y"] == 11
    assert ran.stdout == ""
    assert "offset" not in namespace
    ran = run(client, "print('ran')", namespace, prelude="1 / 0")
    assert ran.finished.view.status == "failed"
    assert ran.stdout == ""
    (error,) = ran.errors
    assert error["type"] == "ZeroDivisionError"
    assert "prelude" in str(error["notes"])


# ---------------------------------------------------------------- failures


def test_a_worker_that_is_killed_in_mid_upload_settles_after_its_restart(tmp_path: Path) -> None:
    outbox = tmp_path / "worker" / "outbox"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    code = "import os, time\nprint('begun', flush=True)\ntime.sleep(1)\nr = os.urandom(40_000_000)"
    sent = capture(code, namespace, with_blobs=True)
    cell = CellSpec(python=sent.python, expected=tuple(sent.expected))
    with (
        Coordinator(tmp_path / "coordinator") as coordinator,
        BlockingClient(url=coordinator.http_url, user="anna") as client,
    ):
        with Worker(coordinator, tmp_path / "worker", *OPTIONS) as worker:
            job = client.submit(code, cell=cell, inputs=sent.payload, timeout_s=60)
            next(u for u in job.updates() if isinstance(u, EventArrived))
            # It takes connections and answers nothing: every upload is under way and none arrives.
            coordinator.process.send_signal(signal.SIGSTOP)
            try:
                wait_for(lambda: list(outbox.glob("*/report")))
                worker.kill()
            finally:
                coordinator.process.send_signal(signal.SIGCONT)
        assert len(list(outbox.glob("*/*.blob"))) == 5
        with Worker(coordinator, tmp_path / "worker", *OPTIONS):
            for _ in job.updates():
                pass
            wait_for(lambda: not list(outbox.glob("*/*")))
        assert job.finished is not None
        assert job.finished.view.status == "completed"
        assert job.finished.view.attempt == 1  # it did not run again
        data = client.download(job.id, job.finished.result_blobs)
        apply_result(data, namespace, expected=sent.expected, cell_source=code)
        assert len(namespace["r"]) == 40_000_000


def test_the_calls_of_a_session_send_and_bring_home_what_changed(
    running: tuple[Coordinator, Worker], client: BlockingClient
) -> None:
    _, worker = running
    namespace: dict[str, Any] = {"__name__": "__main__", "a": np.zeros(4_000_000)}

    def spec(code: str, **more: Any) -> tuple[CellSpec, Any]:
        sent = capture(code, namespace, with_blobs=True)
        cell = CellSpec(
            python=sent.python,
            expected=tuple(sorted(sent.expected)),
            inputs=tuple(sorted(sent.inputs)),
            **more,
        )
        return cell, sent

    def finish(call: Any, code: str, sent: Any) -> None:
        for _ in call.updates():
            pass
        assert call.finished.view.status == "completed", call.finished
        data = call.finished.result or client.download(call.id, call.finished.result_blobs)
        apply_result(data, namespace, expected=sent.expected, cell_source=code)

    before = len(fetched(worker))
    code = "import numpy as np\nb = a + np.arange(4_000_000)"
    cell, sent = spec(code)
    session = client.open_session(
        code, "s", cell=cell, inputs=sent.payload, blobs=sent.blobs, open_limit_s=300
    )
    finish(session.newest, code, sent)
    assert session.newest.finished.result_blobs
    assert np.array_equal(namespace["b"], np.arange(4_000_000))

    namespace["a"][-1] = 5.0  # in its last blob; the others lie in the sandbox
    code = "c = np.arange(3_000_000) + a[-1] + b[-1]\nopen('note', 'w').write('from the session')"
    cell, sent = spec(code, fetch=("note",))
    call = session.call(code, cell=cell, inputs=sent.payload, blobs=sent.blobs, timeout_s=60)
    finish(call, code, sent)
    assert np.array_equal(namespace["c"], np.arange(3_000_000) + 5.0 + 3_999_999)
    session.end(timeout_s=20)
    first, second = fetched(worker)[before:]
    last_bytes = 32_000_000 % (8 * MIB)
    assert first == 8 * MIB + last_bytes  # of zeros: the whole chunks are all the same
    assert second == last_bytes + 32_000_000  # the last one of `a`, and all of `b`
