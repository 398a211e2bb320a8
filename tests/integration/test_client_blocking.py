"""The client for scripts and kernels: plain calls, interrupts, threads and forks."""

from __future__ import annotations

import _weakrefset
import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType

import pytest

import gridx
from gridx.blocking import BlockingClient, _Call
from gridx.errors import InvalidRequest, JobFailed, NotFound, TransportError
from gridx.events import Stream
from gridx.ids import new_job_id
from gridx.protocol import Cancel, Submit
from gridx.schemas import Reason
from gridx.settings import ConnectionSettings
from gridx.updates import EventArrived, Finished, StateChanged
from tests.support.scripted_coordinator import ScriptedGridThread, ScriptedJob


@pytest.fixture
def running() -> Iterator[ScriptedGridThread]:
    thread = ScriptedGridThread()
    yield thread
    thread.close()


@pytest.fixture
def client(running: ScriptedGridThread) -> Iterator[BlockingClient]:
    with BlockingClient(ConnectionSettings(url=running.grid.url, user="ada")) as made:
        yield made


def prints(running: ScriptedGridThread, *texts: str, status: str = "completed") -> None:
    """Let every job print ``texts`` on stdout, one warning on stderr, and end."""
    grid = running.grid

    async def run(job: ScriptedJob) -> None:
        grid.start(job)
        for text in texts:
            grid.emit(job, Stream(name="stdout", text=text))
        grid.emit(job, Stream(name="stderr", text="warned\n"))
        grid.finish(job, status, reason=Reason(code="error", message="It failed."))

    grid.on_submit = run


def interrupt_this_process() -> None:
    """What Ctrl-C, or a notebook's stop button, does."""
    os.kill(os.getpid(), signal.SIGINT)


def test_a_script_reads_updates_and_keeps_the_text(
    running: ScriptedGridThread, client: BlockingClient
) -> None:
    prints(running, "one\n", "two\n")
    job = client.submit("print(1)", timeout_s=30, cpus=2)
    updates = list(job.updates())
    assert isinstance(updates[-1], Finished)
    assert [u.event.text for u in updates if isinstance(u, EventArrived)] == [
        "one\n",
        "two\n",
        "warned\n",
    ]
    assert (job.stdout, job.stderr) == ("one\ntwo\n", "warned\n")
    assert job.finished is not None
    assert job.wait() is job.finished
    assert job.cancel() is job.finished
    assert (job.view.limits.timeout_s, job.view.limits.cpus) == (30, 2)


def test_a_failed_job_gives_its_error(running: ScriptedGridThread, client: BlockingClient) -> None:
    prints(running, status="failed")
    error = client.submit("1/0").wait().error()
    assert isinstance(error, JobFailed)
    assert error.message == "It failed."


def test_an_end_that_an_interrupt_swallowed_is_told_again(
    running: ScriptedGridThread, client: BlockingClient
) -> None:
    prints(running, "x")
    job = client.submit("...")
    while not isinstance(job._job._feed.take(5), Finished):
        pass  # as if the interrupt came before anybody could note it
    assert job.wait().view.status == "completed"


def test_a_silence_is_told_to_those_who_ask(
    running: ScriptedGridThread, client: BlockingClient
) -> None:
    job = client.submit("...")
    updates = job.updates(idle_s=0.01)
    assert isinstance(next(updates), StateChanged)
    assert next(updates) is None
    running.do(running.grid.finish, running.grid.only_job())
    rest = [update for update in updates if update is not None]
    assert isinstance(rest[-1], Finished)


def test_a_wait_can_be_bounded(client: BlockingClient) -> None:
    job = client.submit("...")
    with pytest.raises(TimeoutError, match=r"did not end within 0\.05 s"):
        job.wait(0.05)
    assert job.cancel(timeout_s=30) is not None


def test_an_interrupt_reaches_the_reader_and_the_job_can_be_stopped(
    running: ScriptedGridThread, client: BlockingClient
) -> None:
    job = client.submit("...")
    running.do(running.grid.start, running.grid.only_job())
    with pytest.raises(KeyboardInterrupt):
        for update in job.updates():
            if isinstance(update, StateChanged) and update.view.status == "running":
                threading.Timer(0.05, interrupt_this_process).start()
    end = job.cancel(timeout_s=30)
    assert end is not None
    assert (end.view.status, end.cost_ucr) == ("cancelled", 250_000)


def test_an_interrupt_before_the_answer_cancels_what_was_submitted(
    running: ScriptedGridThread, client: BlockingClient
) -> None:
    client.connect()
    submitted, cancelled = threading.Event(), threading.Event()
    grid = running.grid
    grid.silent_for = {Submit}

    async def interrupt(job: ScriptedJob) -> None:
        submitted.set()
        interrupt_this_process()

    def notice(message: object) -> bool:
        if isinstance(message, Cancel):
            cancelled.set()
        return False

    grid.on_submit = interrupt
    grid.cut_after = notice
    with pytest.raises(KeyboardInterrupt):
        client.submit("...")
    assert submitted.is_set()
    running.do(grid.start, grid.only_job())  # the answer comes after all
    assert cancelled.wait(10)


def test_an_interrupt_before_the_wait_has_begun_cancels_what_was_submitted(
    running: ScriptedGridThread, client: BlockingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.connect()
    submitted = threading.Event()

    async def note(job: ScriptedJob) -> None:
        submitted.set()

    running.grid.on_submit = note
    begin = _Call.begin

    def begin_late(call: _Call[object]) -> None:
        begin(call)
        assert submitted.wait(30)  # the loop and the grid are faster than this thread
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(_Call, "begin", begin_late)
        client.submit("...")
    end = client.attach(running.grid.only_job().view.job_id).wait(30)
    assert end.view.status == "cancelled"


def test_an_interrupt_anywhere_in_a_submission_leaves_no_job_and_no_lock_behind(
    running: ScriptedGridThread, client: BlockingClient
) -> None:
    client.connect()
    sent = 0
    for point in range(1000):
        job_id = new_job_id()
        if not is_interrupted_at(point, partial(client.submit, "...", job_id=job_id)):
            break
        try:
            # On the same connection, so that the grid has any submission before this.
            assert client.attach(job_id).wait(30).view.status == "cancelled"
            sent += 1
        except NotFound:
            pass  # interrupted before it left
    else:
        pytest.fail("A submission without an interrupt was expected in the end.")
    assert point > 20
    assert sent > 0


def is_interrupted_at(point: int, act: Callable[[], object]) -> bool:
    """Interrupt ``act`` where Python would look for a signal the ``point``-th time.

    That is the beginning of a function and the return from one that is written in C. Python
    drops what is raised while it collects garbage, so none is collected here.

    Returns:
        False when ``act`` came to its end before.
    """
    left = point

    def look(frame: FrameType, event: str, arg: object) -> None:
        nonlocal left
        is_garbage = frame.f_code.co_filename == _weakrefset.__file__
        if event in ("call", "c_return") and not is_garbage:
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise KeyboardInterrupt

    before = sys.getprofile()
    gc.disable()
    sys.setprofile(look)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(before)
        gc.enable()
    return False


INTERRUPTED = """
import sys
import gridx

client = gridx.connect(sys.argv[1], "ada")
client.submit("...")
"""


def test_a_script_that_an_interrupt_ends_cancels_what_it_submitted(
    running: ScriptedGridThread,
) -> None:
    grid = running.grid
    grid.silent_for = {Submit}
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, grid.url], stderr=subprocess.PIPE, text=True
    )

    async def interrupt(job: ScriptedJob) -> None:
        process.send_signal(signal.SIGINT)
        asyncio.get_running_loop().call_later(0.3, grid.start, job)  # the answer comes after all

    grid.on_submit = interrupt
    _, said = process.communicate(timeout=60)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert grid.only_job().view.status == "cancelled"


def test_a_cancel_without_an_answer_returns_in_bounded_time(
    running: ScriptedGridThread, client: BlockingClient
) -> None:
    job = client.submit("...")
    running.grid.silent_for = {Cancel}
    running.grid.cancel_ends_job = False
    assert job.cancel(timeout_s=0.05) is None
    running.call(running.grid.stop())
    assert job.cancel(timeout_s=0.05) is None


def test_a_limit_out_of_range_is_refused_before_it_is_sent(client: BlockingClient) -> None:
    with pytest.raises(InvalidRequest, match=r"timeout_s"):
        client.submit("...", timeout_s=-1)
    with pytest.raises(InvalidRequest, match=r"memory_bytes"):
        client.submit("...", memory_bytes=1)


def test_every_call_is_there_without_await(
    running: ScriptedGridThread, client: BlockingClient
) -> None:
    job = client.submit("...")
    assert client.welcome is not None
    assert client.welcome.balance_ucr == 100_000_000
    assert [view.job_id for view in client.jobs().jobs] == [job.id]
    assert client.balance().held == 6.0
    assert client.workers() == ()
    assert (client.health().status, client.status().auth) == ("ok", "open")
    with pytest.raises(NotFound):
        client.attach("job_" + "0" * 32)
    again = client.attach(job.id)
    again.detach()
    job.cancel()


def test_all_clients_share_one_thread_and_any_thread_may_submit(
    running: ScriptedGridThread, client: BlockingClient
) -> None:
    prints(running, "x")
    ends: list[str] = []

    def work() -> None:
        with BlockingClient(client.settings) as own:
            own.submit("...").wait()
        ends.append(client.submit("...").wait().view.status)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert ends == ["completed"] * 4
    assert sum(thread.name == "gridx" for thread in threading.enumerate()) == 1


def test_nobody_there_is_said_at_once() -> None:
    with pytest.raises(TransportError, match="gridx up"):
        gridx.connect("http://127.0.0.1:9")


FORKS = """
import os, sys
import gridx

client = gridx.connect(sys.argv[1], "ada")
ours = client.submit("print(1)")
print("parent", ours.wait().view.status, flush=True)
child = os.fork()
if child == 0:
    try:
        ours.detach()
    except gridx.GridXError as exc:
        print("told", "fork" in str(exc), flush=True)
    print("child", client.submit("print(2)").wait().view.status, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print("parent", client.submit("print(3)").wait().view.status, flush=True)
"""


def test_a_forked_child_opens_its_own_connection(running: ScriptedGridThread) -> None:
    prints(running, "x")
    done = subprocess.run(
        [sys.executable, "-c", FORKS, running.grid.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == [
        "parent completed",
        "told True",
        "child completed",
        "parent completed",
    ]


def test_a_script_that_ends_while_a_job_runs_says_nothing(running: ScriptedGridThread) -> None:
    script = "import gridx, sys; gridx.connect(sys.argv[1], 'ada').submit('...')"
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script, running.grid.url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
