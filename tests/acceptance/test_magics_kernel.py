"""The magics in real kernels and plain IPython; the coordinator does what each test tells it."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridx.codec.results import encode_result, snapshot
from gridx.errors import InsufficientCredits
from gridx.events import DisplayData, ErrorOutput, ExecuteResult, Stream, UpdateDisplayData
from gridx.protocol import Cancel, Submit
from gridx.remote_error import exception_to_data
from gridx.schemas import Reason
from gridx.ship.restore import RestoreError
from tests.support.grid_thread import GridThread, Script, grid_thread
from tests.support.kernels import Kernel
from tests.support.programs import wait_for
from tests.support.scripted_coordinator import ScriptedCoordinator, ScriptedJob

RESTORE = "gridx.ship.restore"


@pytest.fixture(scope="module")
def served() -> Iterator[GridThread]:
    with grid_thread() as grid:
        yield grid


@pytest.fixture(scope="module")
def shared_kernel(served: GridThread) -> Iterator[Kernel]:
    with Kernel(served.url, "scientist") as kernel:
        yield kernel


@pytest.fixture
def grid(served: GridThread) -> GridThread:
    served.forget()
    return served


@pytest.fixture
def kernel(grid: GridThread, shared_kernel: Kernel) -> Kernel:
    shared_kernel.run("%reset -f")
    return shared_kernel


def result_of(code: str, expected: tuple[str, ...], **inputs: object) -> bytes:
    """Return what a worker sends home after it ran ``code``."""
    namespace: dict[str, object] = dict(inputs)
    before = snapshot(namespace, tuple(inputs))
    exec(code, namespace)
    return encode_result(before, namespace, expected=expected, cell=code)


def reply_to(kernel: Kernel, msg_id: str) -> dict[str, Any]:
    """Return the reply to a cell whose messages were all read."""
    while True:
        reply = kernel.client.get_shell_msg(timeout=30)
        if reply["parent_header"].get("msg_id") == msg_id:
            content: dict[str, Any] = reply["content"]
            return content


def completions(kernel: Kernel, text: str) -> list[str]:
    content = reply_to(kernel, kernel.client.complete(text))
    return list(content["matches"])


def plain(lines: list[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))


def finishes(*events: Any, result: bytes | None = None) -> Script:
    async def script(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
        grid.start(job)
        grid.change(job, worker_name="anna", elapsed_s=1.25)
        grid.emit(job, *events)
        grid.finish(job, result=result)

    return script


def test_output_comes_in_order_and_ends_with_the_footer(grid: GridThread, kernel: Kernel) -> None:
    grid.script = finishes(
        Stream(name="stdout", text="one\n"),
        DisplayData(data={"text/plain": "two"}),
        Stream(name="stdout", text="three\n"),
        ExecuteResult(data={"text/plain": "'four'"}),
    )
    ran = kernel.run("%%gridx\nwork()")
    assert ran.reply["status"] == "ok"
    shown = [c.get("text") or c["data"]["text/plain"] for _, _, c in ran.messages]
    assert shown[1:5] == ["one\n", "two", "three\n", "'four'"]
    assert shown[0].startswith("Grid-X: ")
    assert shown[-1].startswith("Grid-X: completed on anna in 1.2 s · cost 1.50 · balance 90.00")
    kinds = [kind for _, kind, _ in ran.messages]
    assert kinds.count("execute_result") == 1
    first, last = ran.messages[0][2], ran.messages[-1][2]
    assert first["transient"]["display_id"] == last["transient"]["display_id"]


def test_stdout_and_stderr_keep_their_order(grid: GridThread, kernel: Kernel) -> None:
    events = [Stream(name="stderr" if n % 3 == 1 else "stdout", text=f"{n} ") for n in range(60)]
    grid.script = finishes(*events)
    ran = kernel.run("%%gridx --quiet\nwork()")
    shown = "".join(c["text"] for _, _, c in ran.messages)
    assert shown.split() == [str(n) for n in range(60)]


def test_quiet_shows_the_output_alone(grid: GridThread, kernel: Kernel) -> None:
    grid.script = finishes(Stream(name="stdout", text="one\n"))
    ran = kernel.run("%%gridx --quiet\nwork()")
    assert [(kind, c["text"]) for _, kind, c in ran.messages] == [("stream", "one\n")]


def test_variables_come_home_and_the_body_is_not_expanded(grid: GridThread, kernel: Kernel) -> None:
    body = "b = {'x': a}\nc = f'{a}'\n"
    grid.script = finishes(result=result_of(body, ("b", "c"), a=3))
    kernel.run("a = 3")
    kernel.run("%%gridx --timeout {a * 20}\n" + body)
    (sent,) = [m for m in grid.grid.received if isinstance(m, Submit)]
    assert sent.job.code == body
    assert sent.job.limits.timeout_s == 60.0
    assert sent.cell is not None
    assert {"b", "c"} <= set(sent.cell.expected)
    assert sent.cell.inputs == ("a",)
    assert kernel.run("print(b, c)").stdout == "{'x': 3} 3\n"


def test_a_worker_cannot_touch_names_that_the_cell_does_not_bind(
    grid: GridThread, kernel: Kernel
) -> None:
    grid.script = finishes(result=result_of("b = 1\nprint = 2\nmine = 3", ("b", "print", "mine")))
    kernel.run("mine = 'untouched'")
    ran = kernel.run("%%gridx\nb = 1")
    assert kernel.run("print(b, mine)").stdout == "1 untouched\n"
    assert "mine is no name that this cell binds" in ran.plain


def test_a_forged_display_id_leaves_the_users_own_display_alone(
    grid: GridThread, kernel: Kernel
) -> None:
    kernel.run("from IPython.display import display\nh = display('mine', display_id='plot')")
    grid.script = finishes(
        DisplayData(data={"text/plain": "x"}, display_id="plot"),
        UpdateDisplayData(data={"text/plain": "forged"}, display_id="plot"),
        UpdateDisplayData(data={"text/plain": "forged"}, display_id="another"),
    )
    ran = kernel.run("%%gridx --quiet\nwork()")
    ids = [c["transient"]["display_id"] for _, _, c in ran.messages]
    assert len(ids) == 2
    assert "plot" not in ids


def test_a_result_that_cannot_be_read_changes_nothing_and_says_so(
    grid: GridThread, kernel: Kernel
) -> None:
    kernel.run("b = 'before'")
    grid.script = finishes(result=b"\x93garbage")
    ran = kernel.run("%%gridx\nb = 1")
    assert ran.error is not None
    assert "no variable was changed" in "".join(ran.error["traceback"])
    assert kernel.run("print(b)").stdout == "before\n"


@pytest.mark.parametrize(
    ("code", "ename"),
    [
        ("timeout", "RemoteTimeout"),
        ("out_of_memory", "RemoteOutOfMemory"),
        ("crashed", "RemoteCrash"),
        ("worker_lost", "WorkerLost"),
    ],
)
def test_a_job_that_ends_badly_is_a_sentence_without_our_frames(
    grid: GridThread, kernel: Kernel, code: str, ename: str
) -> None:
    async def script(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
        grid.start(job)
        grid.finish(
            job, "failed", reason=Reason(code=code, message="It ended.", hint="Do that next.")
        )

    grid.script = script
    ran = kernel.run("%%gridx\nwork()")
    assert ran.error is not None
    assert ran.error["ename"] == ename
    assert ran.error["traceback"] == [f"{ename}: It ended.", "Do that next."]


def test_a_refusal_of_the_coordinator_is_a_sentence(grid: GridThread, kernel: Kernel) -> None:
    grid.grid.refusals[Submit] = InsufficientCredits("You have 1.00 free; this needs 30.00.")
    ran = kernel.run("%%gridx\nwork()")
    assert ran.error is not None
    assert ran.error["ename"] == "InsufficientCredits"
    assert len(ran.error["traceback"]) == 2


@pytest.mark.parametrize(
    ("cell", "ename", "sentence"),
    [
        ("%%gridx --cpsu 2\nx = 1", "UsageError", "Did you mean --cpus?"),
        ("%%gridx\n   ", "UsageError", "Nothing was run."),
        ("%%gridx --max-cost 1\nx = 1", "NotBuilt", "not in this release"),
        ("%%gridx --needs nope\nx = 1", "UnknownNeed", "no variable 'nope'"),
        ("%%gridx --out nope\nx = 1", "UsageError", "nothing in this cell binds"),
        ("%%gridx\nlock.acquire()", "CaptureError", "'lock'"),
        ("%%gridx --max-upload 1M\nlen(big)", "PayloadTooLarge", "big (16.0 MiB)"),
        ("%%gridx --as x-y\nx = 1", "UsageError", "not a variable's name"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_sent(
    grid: GridThread, kernel: Kernel, cell: str, ename: str, sentence: str
) -> None:
    kernel.run("import threading\nlock = threading.Lock()\nbig = bytes(16 << 20)")
    ran = kernel.run(cell)
    assert ran.reply["ename"] == ename
    shown = "".join(c.get("text") or "\n".join(c.get("traceback", ())) for _, _, c in ran.messages)
    assert sentence in shown
    assert "run_cell_magic" not in shown
    assert not [m for m in grid.grid.received if isinstance(m, Submit)]


def test_a_syntax_error_points_at_the_visible_line_and_nothing_is_sent(
    grid: GridThread, kernel: Kernel
) -> None:
    ran = kernel.run("%%gridx\nx = 1\ny = = 2")
    assert ran.error is not None
    assert ran.error["ename"] == "SyntaxError"
    trace = "\n".join(ran.error["traceback"])
    assert "line 3" in trace
    assert "cell.py" not in trace
    assert not [m for m in grid.grid.received if isinstance(m, Submit)]


def test_a_dry_run_says_what_would_travel_and_sends_nothing(
    grid: GridThread, kernel: Kernel
) -> None:
    kernel.run("data = list(range(1000))\napi_key = 'secret'\ndef f():\n    return len(data)")
    ran = kernel.run("%%gridx --dry-run --cpus 2\nn = f() + len(api_key) + lost")
    assert ran.reply["status"] == "ok"
    for words in ("data", "read by f()", "Missing: lost", "api_key", "--needs api_key", "0.20"):
        assert words in ran.stdout
    assert "secret" not in ran.stdout.replace("like a secret", "")
    assert not [m for m in grid.grid.received if isinstance(m, Submit)]


def test_as_keeps_the_result(grid: GridThread, kernel: Kernel) -> None:
    grid.script = finishes(Stream(name="stdout", text="hi\n"), result=result_of("b = 5", ("b",)))
    kernel.run("%%gridx --as run\nb = 5")
    ran = kernel.run("print(run.ok, run.state, run.worker, run.cost, run.values, run.stdout, run)")
    assert ran.stdout.startswith("True completed anna 1.5 {'b': 5} hi\n <CellResult job_")
    assert ran.stdout.count("\n") == 2


def test_interrupt_cancels_the_job_says_its_cost_and_ends_the_cell(
    grid: GridThread, kernel: Kernel
) -> None:
    async def script(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
        grid.start(job)
        grid.emit(job, Stream(name="stdout", text="begun\n"))

    grid.script = script
    msg_id = kernel.start("%%gridx\nwhile True: pass")
    footer = ""
    for _, kind, content in kernel.messages(msg_id, 30):
        if kind == "stream":
            kernel.manager.interrupt_kernel()
        elif kind == "update_display_data":
            footer = content["data"]["text/plain"]
        elif kind == "error":
            assert content["traceback"] == ["KeyboardInterrupt"]
    assert reply_to(kernel, msg_id)["ename"] == "KeyboardInterrupt"
    assert "cancelled" in footer
    assert "cost 0.25" in footer
    assert [m for m in grid.grid.received if isinstance(m, Cancel)]


def test_an_interrupt_while_variables_are_sent_leaves_nothing_running(
    grid: GridThread, kernel: Kernel
) -> None:
    kernel.run("import numpy as np\nbig = np.ones(1 << 18)")
    msg_id = kernel.start("%%gridx\nn = len(big)")
    wait_for(lambda: grid.grid.blobs_asked)
    kernel.manager.interrupt_kernel()
    ran = kernel.finish(msg_id)
    assert ran.error is not None
    assert ran.error["traceback"] == ["KeyboardInterrupt"]
    assert not [m for m in grid.grid.received if isinstance(m, Submit)]


def test_an_interrupt_while_variables_are_looked_at_sends_nothing(
    grid: GridThread, kernel: Kernel
) -> None:
    kernel.run(
        "import time\nclass Slow:\n    def __reduce__(self):\n        print('looked at', flush=True)\n"
        "        time.sleep(60)\nslow = Slow()"
    )
    msg_id = kernel.start("%%gridx\nn = slow")
    for _, kind, _content in kernel.messages(msg_id, 30):
        if kind == "stream":
            kernel.manager.interrupt_kernel()
            break
    ran = kernel.finish(msg_id)
    assert ran.error is not None
    assert ran.error["ename"] == "KeyboardInterrupt"
    assert not [m for m in grid.grid.received if isinstance(m, Submit)]


def test_a_second_interrupt_leaves_at_once_and_names_the_job(
    grid: GridThread, kernel: Kernel
) -> None:
    async def script(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
        grid.start(job)
        grid.emit(job, Stream(name="stdout", text="begun\n"))
        while not any(isinstance(m, Cancel) for m in grid.received):
            await asyncio.sleep(0.01)
        kernel.manager.interrupt_kernel()

    grid.script = script
    grid.grid.cancel_ends_job = False
    kernel.run("x = y = 'old'")
    msg_id = kernel.start("%%gridx\nwhile True: x = y = 'new'")
    last = ""
    for _, kind, content in kernel.messages(msg_id, 30):
        if kind == "stream":
            kernel.manager.interrupt_kernel()
        elif kind == "update_display_data":
            last = content["data"]["text/plain"]
    assert reply_to(kernel, msg_id)["ename"] == "KeyboardInterrupt"
    assert "left at once" in last
    assert "%gridx cancel job_" in last
    # The job went on, and is picked up again: what was bound since stays.
    kernel.run("y = 'mine'")
    result = result_of("x = y = 'new'", ("x", "y"))
    grid.call(lambda: grid.grid.finish(grid.grid.only_job(), result=result))
    attached = kernel.run(f"%gridx attach {grid.grid.only_job().view.job_id}")
    assert attached.stdout == "begun\n"
    assert kernel.run("print(x, y)").stdout == "new mine\n"


def test_a_new_attempt_clears_what_was_shown_and_the_footer_says_so(
    grid: GridThread, kernel: Kernel
) -> None:
    lost = asyncio.Event()

    async def script(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
        grid.start(job)
        grid.emit(job, Stream(name="stdout", text="first\n"))
        await lost.wait()
        grid.start(job)
        grid.emit(job, Stream(name="stdout", text="second\n"))
        grid.finish(job)

    grid.script = script
    msg_id = kernel.start("%%gridx\nwork()")
    said: list[str] = []
    for _, kind, content in kernel.messages(msg_id, 30):
        said.append(content.get("text") or content.get("data", {}).get("text/plain") or kind)
        if said[-1] == "first\n":
            grid.call(lost.set)
    assert said.index("first\n") < said.index("clear_output") < said.index("second\n")
    assert "attempt 2, a worker was lost" in said[-1]
    assert reply_to(kernel, msg_id)["status"] == "ok"


def raises(code: str, **names: object) -> Script:
    """Return a script whose job raises what ``code`` raises."""
    try:
        exec(compile(code, "<cell>", "exec", dont_inherit=True), dict(names))
    except Exception as exc:
        error = exception_to_data(exc, {"<cell>"})
    reason = Reason(code="error", message="The cell raised.")

    async def script(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
        grid.start(job)
        grid.emit(job, Stream(name="stdout", text="before\n"), ErrorOutput(error=error))
        grid.finish(job, "failed", reason=reason, result=result_of("b = 1", ("b",)))

    return script


ERRORS = [
    ("a = 1\nb = a / 0\n", "ZeroDivisionError", 3, "b = a / 0"),
    ("def f():\n    return {}['k']\n\nf()\n", "KeyError", 3, "return {}['k']"),
    ("b = 1\nimport json\njson.loads('{')\n", "JSONDecodeError", 4, "json.loads('{')"),
    ("open('/nowhere')\n", "FileNotFoundError", 2, "open('/nowhere')"),
]


@pytest.mark.parametrize(("body", "name", "line", "source"), ERRORS)
def test_an_error_shows_the_line_of_the_visible_cell_and_none_of_our_frames(
    grid: GridThread, kernel: Kernel, body: str, name: str, line: int, source: str
) -> None:
    grid.script = raises(body)
    ran = kernel.run(f"%%gridx --cpus 1\n{body}")
    assert ran.error is not None
    assert name in ran.error["ename"]
    trace = plain(ran.error["traceback"])
    assert f"---> {line} {source}" in " ".join(trace.split()), trace
    assert f"Cell In[{ran.reply['execution_count']}], line {line}" in trace
    for ours in ("run_cell_magic", "cell.py", "result.py"):
        assert ours not in trace
    assert ran.stdout == "before\n"
    assert kernel.run("print(b)").stdout == "1\n" or "b = 1" not in body


def test_the_line_is_right_below_another_magic_and_blank_lines(
    grid: GridThread, kernel: Kernel
) -> None:
    grid.script = raises("a = 1\na / 0\n")
    ran = kernel.run("\n\n%%gridx\na = 1\na / 0\n")
    assert ran.error is not None
    assert "---> 5 a / 0" in " ".join(plain(ran.error["traceback"]).split())


def test_a_function_of_an_earlier_cell_is_shown_with_its_source(
    grid: GridThread, kernel: Kernel
) -> None:
    kernel.run("def halve(x):\n    y = x\n    return y / 0\n")
    file = kernel.run("print(halve.__code__.co_filename)").stdout.strip()
    names: dict[str, Any] = {}
    exec(compile("def halve(x):\n    y = x\n    return y / 0\n", file, "exec"), names)
    grid.script = raises("halve(1)\n", halve=names["halve"])
    ran = kernel.run("%%gridx\nhalve(1)\n")
    assert ran.error is not None
    trace = plain(ran.error["traceback"])
    trace = " ".join(trace.split())
    assert "---> 2 halve(1)" in trace
    assert "---> 3 return y / 0" in trace


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ExceptionGroup('two', [ValueError('a'), KeyError('b')])\n", "ValueError: a"),
        ("eval('1 +')\n", "SyntaxError"),
        ("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('x') from e\n",
         "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_groups_syntax_errors_and_causes_show_none_of_our_frames(
    grid: GridThread, kernel: Kernel, body: str, words: str
) -> None:
    grid.script = raises(body)
    ran = kernel.run(f"%%gridx\n{body}")
    assert ran.error is not None
    trace = plain(ran.error["traceback"])
    assert words in trace
    assert "run_cell_magic" not in trace
    assert "magics/cell.py" not in trace


def test_a_missing_name_that_stayed_in_the_notebook_is_explained(
    grid: GridThread, kernel: Kernel
) -> None:
    kernel.run("api_key = 'x'")
    grid.script = raises("api_key\n")
    ran = kernel.run("%%gridx\napi_key\n")
    assert ran.error is not None
    assert "--needs api_key" in plain(ran.error["traceback"])


def test_variables_that_the_image_cannot_rebuild_are_a_sentence(
    grid: GridThread, kernel: Kernel
) -> None:
    names = {"RestoreError": type("RestoreError", (Exception,), {"__module__": RESTORE})}
    grid.script = raises("raise RestoreError('They need the module \"x\".')\n", **names)
    ran = kernel.run("%%gridx\nwork()\n")
    assert ran.error is not None
    assert ran.error["ename"] == "JobFailed"
    assert "did not begin" in ran.error["traceback"][0]


FORMULA = """
import sys, types
library = types.ModuleType('patsy')
exec("class Formula: pass", library.__dict__)
sys.modules['patsy'] = library
f = library.Formula()
f.code = 'y ~ lim'
lim = 5
del library
"""


def test_a_name_in_a_formula_is_sent_after_it_was_missed_and_no_other_is(
    grid: GridThread, kernel: Kernel
) -> None:
    async def script(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
        asked = "lim" if len(grid.jobs) == 1 else "token_of_mine"
        message = f"A variable of the cell refers to the name {asked!r}, which was not sent."
        grid.start(job)
        grid.emit(job, ErrorOutput(error=exception_to_data(RestoreError(message), [])))
        grid.finish(job, "failed", reason=Reason(code="error", message="It raised."))

    grid.script = script
    kernel.run(FORMULA + "token_of_mine = 'secret'")
    ran = kernel.run("%%gridx\nprint(f)")
    first, second = [m for m in grid.grid.received if isinstance(m, Submit)]
    assert first.cell is not None
    assert second.cell is not None
    assert set(second.cell.inputs) - set(first.cell.inputs) == {"lim"}
    assert "sent again with it" in "".join(
        c["text"] for _, kind, c in ran.messages if kind == "stream"
    )
    assert ran.error is not None
    assert "--needs token_of_mine" in ran.error["evalue"]


def test_a_missing_module_says_how_it_is_installed(grid: GridThread, kernel: Kernel) -> None:
    grid.script = raises("import no_such_module\n")
    ran = kernel.run("%%gridx\nimport no_such_module\n")
    assert ran.error is not None
    assert "--pip NAME installs it for the cell" in plain(ran.error["traceback"])


def test_a_name_made_at_run_time_comes_home_when_asked_for(
    grid: GridThread, kernel: Kernel
) -> None:
    grid.script = finishes(result=result_of("q = 1", ("q",)))
    ran = kernel.run("%%gridx --out q\nexec('q = ' + str(1))")
    assert ran.error is None
    (sent,) = [m for m in grid.grid.received if isinstance(m, Submit)]
    assert sent.cell is not None
    assert "q" in sent.cell.expected
    assert kernel.run("print(q)").stdout == "1\n"


def test_an_error_of_the_users_own_class_is_caught_as_that_class(
    grid: GridThread, kernel: Kernel
) -> None:
    kernel.run("class Missing(Exception):\n    pass\n")
    names: dict[str, Any] = {"__name__": "__main__"}
    exec("class Missing(Exception):\n    pass\n", names)
    grid.script = raises("raise Missing('nothing there')\n", Missing=names["Missing"])
    ran = kernel.run(
        "try:\n    get_ipython().run_cell_magic('gridx', '', 'raise Missing(1)')\n"
        "except Missing as error:\n    print('caught', error)"
    )
    assert "caught nothing there" in ran.stdout


def test_a_background_cell_returns_at_once_and_lands_before_a_later_cell(
    grid: GridThread, kernel: Kernel
) -> None:
    released = asyncio.Event()

    async def script(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
        grid.start(job)
        await released.wait()
        grid.emit(job, Stream(name="stdout", text="hello\n"))
        grid.finish(job, result=result_of("b = 5\nkept = 'remote'", ("b", "kept")))

    grid.script = script
    kernel.run("kept = 'old'")
    ran = kernel.run("%%gridx --bg --as run\nb = 5\nkept = 'remote'")
    assert ran.reply["status"] == "ok"
    assert kernel.run("print(run.ok, 'b' in globals())").stdout == "False False\n"
    kernel.run("kept = 'mine'")
    grid.call(released.set)
    kernel.run("run.ended.wait(20)")
    ran = kernel.run("print(b, kept, run.ok, run.values['kept'])")
    assert ran.stdout == "5 mine True remote\n"
    assert kernel.run("_ = run.wait()").stdout == "hello\n"
    assert kernel.run("_ = run.wait()").stdout == ""


def test_waiting_for_a_background_cell_shows_its_output_and_raises_its_error(
    grid: GridThread, kernel: Kernel
) -> None:
    async def script(grid: ScriptedCoordinator, job: ScriptedJob) -> None:
        grid.start(job)
        grid.emit(job, Stream(name="stdout", text="hello\n"))
        grid.finish(job, "failed", reason=Reason(code="timeout", message="Stopped at 5 s."))

    grid.script = script
    kernel.run("%%gridx --bg --as run\nwork()")
    ran = kernel.run("run.wait()")
    assert ran.stdout == "hello\n"
    assert ran.error is not None
    assert ran.error["ename"] == "RemoteTimeout"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%gridx", "%%gridx on the first line"),
        ("%gridx status", "as scientist (open mode"),
        ("%gridx balance", "100.00"),
        ("%gridx jobs", "No jobs yet"),
        ("%gridx workers", "gridx up"),
        ("%gridx help", "%gridx logs"),
        ("%gridx help cell", "--dry-run"),
        ("%gridx help secrets", "--needs NAME"),
    ],
)
def test_the_line_magic_answers(grid: GridThread, kernel: Kernel, line: str, words: str) -> None:
    ran = kernel.run(line)
    assert ran.reply["status"] == "ok", ran.reply
    assert words in ran.stdout


@pytest.mark.parametrize(
    ("line", "ename", "words"),
    [
        ("%gridx 1 + 1", "UsageError", "put it below a line %%gridx"),
        ("%gridx stauts", "UsageError", "Did you mean status?"),
        ("%gridx --cpus 2", "UsageError", "two percent signs"),
        ("%gridx logs", "UsageError", "JOB"),
        ("%gridx attach job_1", "InvalidRequest", "is not a job id"),
        ("%gridx login http://127.0.0.1:9", "TransportError", "gridx up"),
        ("%gridx help nothing", "UsageError", "no help"),
    ],
)
def test_a_wrong_line_says_what_to_do(
    grid: GridThread, kernel: Kernel, line: str, ename: str, words: str
) -> None:
    ran = kernel.run(line)
    assert ran.reply["ename"] == ename
    shown = "".join(c.get("text") or "\n".join(c["traceback"]) for _, _, c in ran.messages)
    assert words in shown
    assert "run_line_magic" not in shown


def test_completion_offers_options_subcommands_and_variables(
    grid: GridThread, kernel: Kernel
) -> None:
    kernel.run("measurements = 1")
    assert "--timeout" in completions(kernel, "%%gridx --tim")
    assert "balance" in completions(kernel, "%gridx bal")
    assert "measurements" in completions(kernel, "%%gridx --needs meas")


def ipython(url: str, code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a plain IPython, without a kernel."""
    script = tmp_path / "session.ipy"
    script.write_text(code)
    env = {
        **os.environ,
        "GRIDX_URL": url,
        "GRIDX_USER": "plain",
        "IPYTHONDIR": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path),
    }
    return subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script)],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        cwd=tmp_path,
    )


LOAD = 'get_ipython().run_line_magic("load_ext", "gridx_jupyter")\n'
PLAIN = f"""{LOAD}
get_ipython().run_cell("%%gridx\\nb = 5\\nprint('hi')")
print("b is", b)
get_ipython().run_line_magic("unload_ext", "gridx_jupyter")
print("gridx" in get_ipython().magics_manager.magics["cell"])
"""


def test_plain_ipython_prints_the_output_and_one_footer_line(
    grid: GridThread, tmp_path: Path
) -> None:
    grid.script = finishes(Stream(name="stdout", text="hi\n"), result=result_of("b = 5", ("b",)))
    ran = ipython(grid.url, PLAIN, tmp_path)
    assert ran.stdout == "hi\nb is 5\nFalse\n", ran.stdout + ran.stderr
    assert ran.stderr.startswith("Grid-X: completed on anna in 1.2 s · cost 1.50")
    assert ran.stderr.count("\n") == 1


def test_without_a_coordinator_the_cell_says_what_to_type(grid: GridThread, tmp_path: Path) -> None:
    ran = ipython(
        "http://127.0.0.1:9", LOAD + "get_ipython().run_cell('%%gridx\\nb = 5')\n", tmp_path
    )
    shown = ran.stdout + ran.stderr
    assert "gridx up" in shown
    assert "%gridx login URL" in shown
    assert "Traceback" not in shown


def test_loading_imports_neither_the_client_nor_the_shipping_code(tmp_path: Path) -> None:
    code = (
        "import sys\nget_ipython().run_line_magic('load_ext', 'gridx_jupyter')\n"
        "heavy = ('gridx.client', 'gridx.ship.capture', 'cloudpickle', 'numpy', 'tornado')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    assert ipython("http://127.0.0.1:9", code, tmp_path).stdout == "[]\n"
