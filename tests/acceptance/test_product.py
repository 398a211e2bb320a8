"""The whole product: three real programs, real Docker, real kernels; what the issue must show."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from gridx.blocking import BlockingClient
from gridx.events import OutputDropped, join_text
from gridx.resources import MIB
from gridx.updates import EventArrived
from tests.support.kernels import Kernel
from tests.support.programs import Coordinator, Worker, containers_of, grid, wait_for

pytestmark = pytest.mark.docker
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Coordinator, Worker]]:
    with grid(tmp_path_factory.mktemp("grid")) as pair:
        yield pair


@pytest.fixture(scope="module")
def kernel(running: tuple[Coordinator, Worker]) -> Iterator[Kernel]:
    with Kernel(running[0].http_url, "scientist") as kernel:
        yield kernel


def credits_of(coordinator: Coordinator, user: str) -> dict[str, float]:
    account: dict[str, float] = coordinator.get(f"/credits/{user}")
    return account


def test_the_two_calls_of_the_compatibility_section_work_without_any_other_step(
    tmp_path: Path,
) -> None:
    with grid(tmp_path, lender="alice") as (coordinator, _):
        base = coordinator.http_url
        reply = requests.post(
            f"{base}/jobs",
            json={"user_id": "alice", "code": "print('hello from the grid')", "language": "python"},
            timeout=20,
        )
        job = reply.json()
        assert job["status"] in ("queued", "running")
        assert job["reserved"] == 6.0
        done = coordinator.wait_job(job["job_id"])
        assert (done["status"], done["stdout"], done["stderr"]) == (
            "completed",
            "hello from the grid\n",
            "",
        )


def test_the_same_by_curl(running: tuple[Coordinator, Worker]) -> None:
    base = running[0].http_url
    curl = shutil.which("curl")
    assert curl, "curl is needed for this test: apt-get install curl"

    def call(*arguments: str) -> dict[str, object]:
        out = subprocess.run(
            [curl, "-sS", *arguments], capture_output=True, check=True, timeout=30
        ).stdout
        return dict(json.loads(out))

    body = json.dumps({"user_id": "bob", "code": "print(6 * 7)", "language": "python"})
    job = call("-X", "POST", f"{base}/jobs", "-H", "Content-Type: application/json", "-d", body)
    done = wait_for(
        lambda: (j := call(f"{base}/jobs/{job['job_id']}"))["status"] == "completed" and j
    )
    assert done["stdout"] == "42\n"


def test_the_coordinator_starts_inside_its_own_folder_too(tmp_path: Path) -> None:
    with Coordinator(tmp_path / "data", cwd=ROOT / "coordinator") as coordinator:
        assert coordinator.get("/health")["status"] == "ok"


def test_ten_lines_over_five_seconds_each_show_before_the_next_but_one_is_printed(
    kernel: Kernel,
) -> None:
    cell = "%%gridx\nimport time\nfor i in range(10):\n    print('line', i, time.time())\n    time.sleep(0.5)"
    arrived: dict[int, float] = {}
    printed: dict[int, float] = {}
    msg_id = kernel.start(cell)
    text, seen = "", 0
    for at, kind, content in kernel.messages(msg_id, 60):
        if kind == "stream" and content["name"] == "stdout":
            text += content["text"]
            for line in text.splitlines()[seen:]:
                if line.startswith("line") and len(line.split()) == 3:
                    number, stamp = int(line.split()[1]), float(line.split()[2])
                    arrived[number], printed[number] = at, stamp
                    seen += 1
    assert sorted(arrived) == list(range(10))
    # By order, not by a clock: two lines are a second apart where they are printed.
    assert all(arrived[i] < printed[i + 2] for i in range(8))


def test_variables_travel_there_and_results_come_home(kernel: Kernel) -> None:
    kernel.run(
        "import numpy as np\nfactor = 3\ndata = np.arange(6.0)\nnames = ['a']\n\ndef scale(x):\n    return x * factor"
    )
    ran = kernel.run(
        "%%gridx\nimport socket\nscaled = scale(data)\nnames.append('b')\nhost = socket.gethostname()\nscaled.sum()"
    )
    assert ran.error is None, ran.error
    assert "45.0" in ran.plain
    here = kernel.run("import socket\nprint(scaled.tolist(), names, host != socket.gethostname())")
    assert here.stdout == "[0.0, 3.0, 6.0, 9.0, 12.0, 15.0] ['a', 'b'] True\n"


def test_a_plot_arrives_as_a_picture(kernel: Kernel) -> None:
    ran = kernel.run("%%gridx\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()")
    assert ran.error is None, ran.error
    assert "image/png" in ran.mime_types()


def test_an_error_points_at_the_line_of_the_visible_cell(kernel: Kernel) -> None:
    ran = kernel.run("%%gridx\nvalue = 1\nother = 0\nvalue / other\nprint('never')")
    assert ran.reply["status"] == "error"
    assert ran.error is not None
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(ran.error["traceback"]))
    assert "ZeroDivisionError" in trace
    assert "----> 4 value / other" in trace
    caught = kernel.run("print(value, other)")
    assert caught.stdout == "1 0\n"


def test_interrupt_removes_the_container_and_closes_the_hold(
    running: tuple[Coordinator, Worker], kernel: Kernel
) -> None:
    coordinator, worker = running
    msg_id = kernel.start("%%gridx\nprint('begun', flush=True)\nwhile True:\n    pass")
    for _, kind, content in kernel.messages(msg_id, 60):
        if kind == "stream" and "begun" in content["text"]:
            busy = set(containers_of(worker.worker_id))
            job = coordinator.get("/jobs?user_id=scientist&limit=1")["jobs"][0]
            kernel.manager.interrupt_kernel()
            break
    end = wait_for(
        lambda: (j := coordinator.get(f"/jobs/{job['job_id']}"))["status"] == "cancelled" and j, 10
    )
    wait_for(lambda: len(busy - set(containers_of(worker.worker_id))) >= 1, 10)
    ran = kernel.finish(msg_id)
    assert ran.reply["ename"] == "KeyboardInterrupt"
    account = credits_of(coordinator, "scientist")
    assert account["held"] == 0.0
    assert 0 < end["cost"] < 30.0  # five minutes of one core were held


def test_credits_move_from_the_user_to_the_lender_by_the_cost(
    running: tuple[Coordinator, Worker],
) -> None:
    coordinator, _ = running
    coordinator.wait_job(coordinator.submit("payer", "print(1)"))
    before = {user: credits_of(coordinator, user)["balance"] for user in ("payer", "lender")}
    job = coordinator.wait_job(coordinator.submit("payer", "import time; time.sleep(0.5)"))
    after = {user: credits_of(coordinator, user)["balance"] for user in ("payer", "lender")}
    assert job["cost"] >= 0.05
    assert round(before["payer"] - after["payer"], 6) == job["cost"]
    assert 0 < after["lender"] - before["lender"] <= job["cost"] * 0.85 + 1e-6


@pytest.mark.parametrize(
    ("code", "limits", "code_of_reason"),
    [
        ("while True: pass", {"timeout_s": 1}, "timeout"),
        (
            "x = bytearray(900 << 20); x[::4096] = b'1' * len(x[::4096])",
            {"memory_bytes": 256 << 20},
            "out_of_memory",
        ),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", {}, "crashed"),
        ("raise SystemExit(3)", {}, "job_failed"),
    ],
)
def test_a_job_that_ends_badly_says_why(
    running: tuple[Coordinator, Worker], code: str, limits: dict[str, int], code_of_reason: str
) -> None:
    coordinator, _ = running
    job = coordinator.wait_job(coordinator.submit("clumsy", code, **limits))
    assert job["status"] == "failed"
    assert job["reason"]["code"] == code_of_reason
    assert job["reason"]["hint"]
    assert credits_of(coordinator, "clumsy")["held"] == 0.0


def test_a_flood_of_output_is_capped_with_a_visible_marker_and_the_job_goes_on(
    running: tuple[Coordinator, Worker],
) -> None:
    coordinator, _ = running
    code = "block = 'x' * 1023 + '\\n'\nfor _ in range(80 * 1024): print(block, end='')\nprint('the end')"
    job = coordinator.wait_job(coordinator.submit("loud", code), within_s=120)
    assert job["status"] == "completed"
    assert job["output_truncated"]
    client = BlockingClient(url=coordinator.http_url, user="loud")
    events = [
        update.event
        for update in client.attach(job["job_id"]).updates()
        if isinstance(update, EventArrived)
    ]
    client.close()
    dropped = [event for event in events if isinstance(event, OutputDropped)]
    text = join_text(events, "stdout")
    assert len(dropped) == 1
    assert text.endswith("the end\n")
    assert len(text) + dropped[0].dropped_bytes >= 80 * MIB
    assert 64 * MIB < len(text) < 66 * MIB


def test_a_killed_worker_loses_its_job_to_another_and_leaves_no_container(tmp_path: Path) -> None:
    options = ("--grace-s", "2", "--heartbeat-s", "0.5")
    with (
        Coordinator(tmp_path / "coordinator", *options) as coordinator,
        Worker(coordinator, tmp_path / "first", user="first") as first,
    ):
        job_id = coordinator.submit(
            "patient", "import time\nprint('begun', flush=True)\ntime.sleep(6)\nprint('done')"
        )
        coordinator.wait_job(job_id, lambda job: "begun" in job["stdout"])
        first.kill()
        with Worker(coordinator, tmp_path / "second", user="second") as second:
            job = coordinator.wait_job(job_id)
            assert (job["status"], job["attempt"], job["worker_id"]) == (
                "completed",
                2,
                second.worker_id,
            )
            assert job["stdout"] == "begun\ndone\n"
            wait_for(lambda: not containers_of(first.worker_id, running=True), 10)
            remains = set(containers_of(first.worker_id))
            with Worker(coordinator, tmp_path / "first", user="first") as again:
                assert again.worker_id == first.worker_id
                assert not remains & set(containers_of(first.worker_id))
        assert credits_of(coordinator, "patient")["held"] == 0.0
        assert credits_of(coordinator, "first")["balance"] == 100.0
        assert credits_of(coordinator, "patient")["balance"] == pytest.approx(100.0 - job["cost"])


def test_a_killed_coordinator_comes_back_and_the_output_goes_on_without_a_gap(
    tmp_path: Path,
) -> None:
    data = tmp_path / "coordinator"
    first = Coordinator(data)
    try:
        with Worker(first, tmp_path / "worker"), Kernel(first.http_url, "steady") as kernel:
            msg_id = kernel.start(
                "%%gridx\nimport time\nfor i in range(40):\n    print(i, flush=True)\n    time.sleep(0.15)\ntotal = 40"
            )
            text, second = "", None
            for _, kind, content in kernel.messages(msg_id, 90):
                if kind == "stream" and content["name"] == "stdout":
                    text += content["text"]
                    if second is None and "9\n" in text:
                        first.kill()
                        second = Coordinator(data, like=first)
            assert text == "".join(f"{i}\n" for i in range(40))
            assert second is not None
            reply = kernel.run("print(total)")
            assert reply.stdout == "40\n"
            job = second.get("/jobs?user_id=steady")["jobs"][0]
            assert (job["status"], job["attempt"]) == ("completed", 1)
            assert credits_of(second, "steady")["held"] == 0.0
            second.stop()
    finally:
        first.kill()


def test_a_stopped_worker_leaves_no_container_and_hands_its_job_back(tmp_path: Path) -> None:
    with Coordinator(tmp_path / "coordinator") as coordinator:
        worker = Worker(coordinator, tmp_path / "worker", "--drain-s", "1")
        job_id = coordinator.submit(
            "calm", "import time\nprint('begun', flush=True)\ntime.sleep(20)"
        )
        coordinator.wait_job(job_id, lambda job: "begun" in job["stdout"])
        assert worker.stop() == 0
        assert containers_of(worker.worker_id) == []
        job = coordinator.wait_job(job_id, lambda job: job["status"] == "queued")
        assert job["waiting"]
        cancelled = coordinator.post(f"/jobs/{job_id}/cancel", {})
        assert cancelled.json()["status"] == "cancelled"
        assert credits_of(coordinator, "calm") == {
            "user_id": "calm",
            "balance": 100.0,
            "available": 100.0,
            "held": 0.0,
        }


@pytest.mark.parametrize(
    "notebook", ["01_first_cell", "02_bring_data_home", "03_sessions_and_files"]
)
def test_the_example_runs(
    running: tuple[Coordinator, Worker], notebook: str, tmp_path: Path
) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(ROOT / "examples" / f"{notebook}.ipynb", as_version=4)
    env = {
        "GRIDX_URL": running[0].http_url,
        "GRIDX_USER": f"reader-{notebook[:2]}",
        "XDG_DATA_HOME": str(tmp_path / "data"),
    }
    client = NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        client.execute()
    ran = [cell for cell in book.cells if cell.cell_type == "code" and "%%gridx" in cell.source]
    assert len(ran) >= 3
    assert all(cell.outputs for cell in ran)


def test_make_demo_runs_without_docker_from_the_process_sandbox(tmp_path: Path) -> None:
    env = {"DOCKER_HOST": f"unix://{tmp_path}/none.sock", "GRIDX_NO_INSTALL": "1"}
    import os

    run = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=280,
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "--sandbox process" in run.stdout
