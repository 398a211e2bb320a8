"""The magics against the three real programs, with real containers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.support.kernels import Kernel
from tests.support.programs import Coordinator, Worker, grid, wait_for

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Coordinator, Worker]]:
    with grid(tmp_path_factory.mktemp("grid")) as pair:
        yield pair


@pytest.fixture(scope="module")
def kernel(running: tuple[Coordinator, Worker]) -> Iterator[Kernel]:
    with Kernel(running[0].http_url, "researcher") as kernel:
        yield kernel


def trace_of(ran: object) -> str:
    error = getattr(ran, "error", None)
    assert error is not None
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error["traceback"])).split())


def test_output_of_every_kind_comes_in_its_order(kernel: Kernel) -> None:
    ran = kernel.run(
        "%%gridx --quiet\nimport os, sys\nfrom IPython.display import display\n"
        "print('1')\nprint('2', file=sys.stderr)\nos.system('echo 3')\ndisplay('4')\n"
        "print('5')\n'6'"
    )
    assert ran.error is None
    shown = [str(c.get("text") or c["data"]["text/plain"]) for _, _, c in ran.messages]
    assert re.findall(r"\d", "".join(shown)) == list("123456")


def test_a_live_display_and_a_cleared_output_look_as_they_do_here(kernel: Kernel) -> None:
    ran = kernel.run(
        "%%gridx --quiet\nfrom IPython.display import clear_output, display\n"
        "print('gone')\nclear_output(wait=True)\nbar = display('0 %', display_id=True)\n"
        "bar.update('100 %')\ndel bar"
    )
    kinds = [kind for _, kind, _ in ran.messages]
    assert kinds[-3:] == ["clear_output", "display_data", "update_display_data"]
    first, last = (ran.messages[-2][2], ran.messages[-1][2])
    assert first["transient"]["display_id"] == last["transient"]["display_id"]


def test_a_hostile_cell_shows_nothing_that_a_page_would_run(kernel: Kernel) -> None:
    ran = kernel.run(
        "%%gridx\nfrom IPython.display import HTML, SVG, Javascript, display, publish_display_data\n"
        "for bad in (HTML('<script>1</script>'), Javascript('1'), SVG('<svg></svg>')):\n"
        "    display(bad)\n"
        "publish_display_data({'application/vnd.jupyter.widget-view+json': {'model_id': 'x'}})\n"
        "print('\\x1b]0;title\\x07\\x1b[2J\\x1b[31mred')"
    )
    assert set(ran.mime_types()) <= {"text/plain", "text/html"}
    shown = [str(c["data"]) for _, _, c in ran.messages if "data" in c]
    assert not [text for text in shown if re.search("<script|<svg|model_id", text)]
    assert ran.stdout.startswith("\x1b[31mred\n")
    assert "<script>" not in ran.plain


def test_a_flood_of_text_is_cut_with_the_command_that_shows_the_rest(
    kernel: Kernel, tmp_path: Path
) -> None:
    ran = kernel.run("%%gridx\nfor n in range(40_000):\n    print(f'{n:060d}')")
    shown = sum(len(c["text"]) for _, k, c in ran.messages if k == "stream")
    assert 1_000_000 <= shown < 1_001_000
    notice = next(
        c["text"] for _, k, c in ran.messages if k == "stream" and "%gridx logs" in c["text"]
    )
    job = re.search(r"job_\w+", notice)
    assert job is not None
    assert kernel.run(f"%gridx logs {job[0]}").stdout.count("\n") == 40_000
    kernel.run(f"%gridx logs {job[0]} --to {tmp_path}/all.txt")
    assert (tmp_path / "all.txt").read_text() == "".join(f"{n:060d}\n" for n in range(40_000))


def test_a_function_of_an_earlier_cell_stands_in_the_traceback_with_its_line(
    kernel: Kernel,
) -> None:
    kernel.run("def halve(x):\n    y = x\n    return y / 0\n")
    trace = trace_of(kernel.run("%%gridx\nz = 1\nhalve(z)"))
    assert "--> 3 halve(z)" in trace
    assert "--> 3 return y / 0" in trace
    assert "run_cell_magic" not in trace


@pytest.mark.parametrize(
    ("cell", "ename"),
    [
        ("%%gridx --timeout 1\nwhile True: pass", "RemoteTimeout"),
        ("%%gridx --mem 128M\nb = bytearray(900 << 20)", "RemoteOutOfMemory"),
        ("%%gridx\nimport os\nos.abort()", "RemoteCrash"),
        ("%%gridx --cpus 1000 --timeout 24h\n1", "InsufficientCredits"),
    ],
)
def test_what_ends_a_cell_is_named_and_says_what_to_do(
    kernel: Kernel, cell: str, ename: str
) -> None:
    ran = kernel.run(cell)
    assert ran.error is not None
    assert ran.error["ename"] == ename
    assert len(ran.error["traceback"]) == 2


def test_objects_keep_their_identity_and_changes_in_place_are_seen_by_other_names(
    kernel: Kernel,
) -> None:
    kernel.run("import numpy as np\na = np.zeros(3)\nb = a\nlog = []\nkeep = log")
    kernel.run("%%gridx\na += 1\nlog.append(a.sum())\nclass P:\n    x = 1\np = P()")
    ran = kernel.run("print(b.tolist(), b is a, keep == [3.0], keep is log, type(p) is P, p.x)")
    assert ran.stdout == "[1.0, 1.0, 1.0] True True True True 1\n"


def test_a_background_cell_lands_and_is_waited_for(kernel: Kernel) -> None:
    ran = kernel.run("%%gridx --bg --as run\nimport time\ntime.sleep(0.5)\nfar = 7\nprint('far')")
    assert ran.reply["status"] == "ok"
    assert kernel.run("run.wait()\nprint(far, run.ok, run.cost > 0)").stdout == "far\n7 True True\n"


def test_a_cancelled_background_cell_says_so(kernel: Kernel) -> None:
    kernel.run("%%gridx --bg --as run\nwhile True: pass")
    ran = kernel.run("run.cancel().wait()")
    assert ran.error is not None
    assert ran.error["ename"] == "JobCancelled"


def test_a_timeout_of_nbclient_interrupts_the_cell_and_stops_the_job(
    running: tuple[Coordinator, Worker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator, _ = running
    monkeypatch.setenv("GRIDX_URL", coordinator.http_url)
    monkeypatch.setenv("GRIDX_USER", "impatient")
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell("%load_ext gridx_jupyter"),
            nbformat.v4.new_code_cell("%%gridx\nwhile True: pass"),
        ]
    )
    client = NotebookClient(
        book,
        # The first cell only imports; the second has time to begin its job on a busy machine.
        timeout_func=lambda cell: 10 if "%%gridx" in cell.source else 120,
        interrupt_on_timeout=True,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
        client.execute()
    (job,) = coordinator.get("/jobs?user_id=impatient")["jobs"]
    job = coordinator.wait_job(job["job_id"])
    assert job["status"] == "cancelled"
    assert 0 < job["cost"] < 10
    assert coordinator.get("/credits/impatient")["held"] == 0.0
    footer = book.cells[1].outputs[0]["data"]["text/plain"]
    assert "cancelled" in footer
    assert "cost" in footer


def test_a_lost_worker_voids_what_was_shown_and_the_cell_runs_again(tmp_path: Path) -> None:
    options = ("--grace-s", "1", "--heartbeat-s", "0.5")
    with (
        Coordinator(tmp_path / "coordinator", *options) as coordinator,
        Worker(coordinator, tmp_path / "first", user="first") as first,
        Kernel(coordinator.http_url, "patient") as kernel,
    ):
        msg_id = kernel.start(
            "%%gridx\nimport time\nprint('begun', flush=True)\ntime.sleep(3)\nprint('done')\nx = 1"
        )
        for _, kind, content in kernel.messages(msg_id, 60):
            if kind == "stream" and "begun" in content["text"]:
                first.kill()
                break
        with Worker(coordinator, tmp_path / "second", user="second"):
            ran = kernel.finish(msg_id)
            wait_for(lambda: coordinator.get("/jobs?user_id=patient")["jobs"][0]["attempt"] == 2)
        kinds = [kind for _, kind, _ in ran.messages]
        assert "clear_output" in kinds
        assert ran.stdout == "begun\ndone\n"
        assert "attempt 2, a worker was lost" in ran.plain
        assert kernel.run("print(x)").stdout == "1\n"


def test_login_goes_to_another_grid_and_remembers_it(
    running: tuple[Coordinator, Worker], tmp_path: Path
) -> None:
    url = running[0].http_url
    with Kernel("http://127.0.0.1:9", "nobody-yet", XDG_CONFIG_HOME=str(tmp_path)) as kernel:
        before = kernel.run("%gridx balance")
        assert "%gridx login URL" in trace_of(before)
        ran = kernel.run(f"%gridx login {url} --user carol")
        assert ran.stdout.startswith(f"Logged in at {url} as carol: 100.00 credits free.")
        assert kernel.run("%%gridx --quiet\nprint(1)").stdout == "1\n"
        failed = kernel.run("%gridx login http://127.0.0.1:9")
        assert "gridx up" in trace_of(failed)
        assert kernel.run("%gridx balance").stdout.startswith("carol: 9")
    file = tmp_path / "gridx" / "config.toml"
    assert f'url = "{url}"' in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
