"""Each option and subcommand in a real kernel, against the real programs.

One grid with a process sandbox serves them all: what isolates a cell is tested elsewhere.
"""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernels import CellRun, Kernel
from tests.support.programs import Coordinator, Worker, grid, wait_for
from worker.lending.control import Ask, ask_worker

USER = "researcher"
ROOT = Path(__file__).resolve().parents[2]
FAST = ("--grace-s", "1", "--heartbeat-s", "0.5")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The notebook's folder; config and data of its user lie beside it."""
    home = tmp_path_factory.mktemp("home") / "notebooks"
    home.mkdir()
    return home


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Coordinator, Worker]]:
    with grid(tmp_path_factory.mktemp("grid"), *FAST, sandbox="process", lender=USER) as pair:
        yield pair


def start(coordinator: Coordinator, home: Path) -> Kernel:
    base = home.parent
    kernel = Kernel(
        coordinator.http_url,
        USER,
        XDG_CONFIG_HOME=str(base / "config"),
        XDG_DATA_HOME=str(base / "data"),
        JPY_SESSION_NAME=str(home / "paper.ipynb"),
    )
    kernel.run(f"%cd -q {home}")
    return kernel


@pytest.fixture(scope="module")
def shared(running: tuple[Coordinator, Worker], home: Path) -> Iterator[Kernel]:
    with start(running[0], home) as kernel:
        yield kernel


@pytest.fixture
def kernel(shared: Kernel) -> Kernel:
    shared.run("%gridx off")
    shared.run("%gridx prelude clear")
    shared.run("%reset -f")
    return shared


def good(ran: CellRun) -> str:
    """Return what a cell printed, once it has done so without an error."""
    assert ran.error is None, ran.error
    return ran.stdout


def said(ran: CellRun) -> str:
    """Return everything that a cell has shown, as text."""
    errors = "".join("\n".join(c["traceback"]) for _, k, c in ran.messages if k == "error")
    streams = "".join(c["text"] for _, k, c in ran.messages if k == "stream")
    return re.sub(r"\x1b\[[0-9;]*m", "", f"{streams}\n{ran.plain}\n{errors}")


def job_of(ran: CellRun) -> str:
    found = re.findall(r"job_[0-9a-f]{32}", ran.plain)
    assert found, said(ran)
    return str(found[-1])


# --- files ------------------------------------------------------------------------------------


def test_files_travel_there_and_back_and_the_users_own_stay(kernel: Kernel, home: Path) -> None:
    (home / "data").mkdir(exist_ok=True)
    (home / "data" / "in.csv").write_text("1,2\n")
    (home / "mine.txt").write_text("mine")
    ran = kernel.run(
        "%%gridx --files data/*.csv --fetch out mine.txt data --as r\n"
        "from pathlib import Path\n"
        "print(Path('data/in.csv').read_text())\nPath('out').mkdir()\n"
        "Path('out/new.txt').write_text('made there')\nPath('mine.txt').write_text('theirs')\n"
        "Path('data/in.csv').write_text('changed there')"
    )
    assert good(ran).startswith("1,2")
    assert (home / "out" / "new.txt").read_text() == "made there"
    assert (home / "data" / "in.csv").read_text() == "changed there"
    assert (home / "mine.txt").read_text() == "mine"
    assert "mine.txt is yours and stays" in ran.plain
    assert good(kernel.run("print(r.files['mine.txt'].read_text())")) == "theirs\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--files nothing/*.csv", "no file matches"),
        ("--files /etc/passwd", "is not relative"),
        ("--files ../x", "leaves the notebook's folder"),
        ("--image x", "No worker has an image 'x' for python. There is: python."),
        ("--pip polars", "installs packages"),
        ("--disk 1G", "does not fit into 1 GiB of memory"),
        ("--gpu f(x)", "asks for no GPU"),
        ("--max-cost 1", "not in this release"),
        ("--verify 2", "not in this release"),
        ("--on mine", "not in this release"),
        ("--language ruby", "must be one of python, bash, node"),
        ("--language bash --needs x", "no variables travel to a bash script"),
        ("--language bash --session s", "a session is a Python process"),
        ("--profile nope", "There is no profile 'nope'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(
    running: tuple[Coordinator, Worker], kernel: Kernel, options: str, words: str
) -> None:
    before = running[0].get(f"/jobs?user_id={USER}")["jobs"]
    assert words in said(kernel.run(f"%%gridx {options}\nx = 1"))
    assert running[0].get(f"/jobs?user_id={USER}")["jobs"] == before


# --- scripts of other languages ---------------------------------------------------------------


def test_a_cell_may_be_a_bash_script(kernel: Kernel) -> None:
    ran = kernel.run('%%gridx --language bash\nfor n in 1 2; do echo "$n $0"; done\necho e >&2')
    assert good(ran) == "1 job.sh\n2 job.sh\n"
    assert "e\n" in said(ran)
    assert "completed" in ran.plain


def test_a_cell_may_be_a_script_for_node(kernel: Kernel) -> None:
    assert good(kernel.run("%%gridx --language js\nconsole.log([1, 2].map(n => n * 2))")) == (
        "[ 2, 4 ]\n"
    )


def test_an_exit_code_is_an_error_that_names_it(kernel: Kernel) -> None:
    ran = kernel.run("%%gridx --language bash --as r\necho before\nno_such_command")
    assert ran.error is not None
    assert ran.error["ename"] == "JobFailed"
    assert ran.error["evalue"].startswith("The script left with exit code 127.")
    assert ran.stdout == "before\n"
    assert "job.sh: line 2: no_such_command: command not found" in said(ran)
    assert good(kernel.run("print(r.state, r.ok, r.stderr)")).startswith("failed False job.sh")


def test_a_script_may_go_on_in_the_background(kernel: Kernel) -> None:
    good(kernel.run("%%gridx --language bash --bg --as r\necho hi"))
    assert good(kernel.run("r.wait()\nprint(r.ok, r.values)")) == "hi\nTrue {}\n"


def test_a_script_is_attached_to_and_retried_as_one(kernel: Kernel) -> None:
    ran = kernel.run("%%gridx --language bash\necho hi")
    assert good(kernel.run(f"%gridx retry {job_of(ran)}")) == "hi\n"
    assert "hi\n" in good(kernel.run(f"%gridx attach {job_of(ran)}"))


def test_a_script_takes_no_variable_along_and_leaves_the_notebook_as_it_was(
    kernel: Kernel,
) -> None:
    kernel.run("x = 1")
    assert good(kernel.run("%%gridx --language bash\nx=2; echo ${y:-unset}")) == "unset\n"
    assert good(kernel.run("print(x)")) == "1\n"


def test_a_dry_run_of_a_script_says_what_it_would_run_in(kernel: Kernel) -> None:
    text = good(kernel.run("%%gridx --language bash --dry-run --disk 200M\necho hi"))
    assert "A bash script: no variable travels or comes home." in text
    assert "Image: bash (bash), of" in text
    assert "200 MiB of it for files" in text


def test_the_result_of_a_script_is_kept_by_its_language(kernel: Kernel) -> None:
    first = kernel.run("%%gridx --language bash --cache\necho $RANDOM$RANDOM")
    again = kernel.run("%%gridx --language bash --cache\necho $RANDOM$RANDOM")
    assert good(again) == good(first)
    assert "from cache" in again.plain


def test_a_dry_run_says_the_image_and_what_would_be_installed(kernel: Kernel) -> None:
    text = good(kernel.run("%%gridx --dry-run\nimport numpy"))
    assert "Image: python (Python 3." in text
    refused = good(kernel.run("%%gridx --dry-run --pip polars\nx = 1"))
    assert "Refused: No worker with Python 3." in refused


def test_packages_are_not_installed_for_a_local_cell_and_it_says_so(kernel: Kernel) -> None:
    ran = kernel.run("%%gridx --local --pip polars\nx = 1")
    assert ran.error is None
    assert "--pip installs nothing here" in ran.plain


def test_a_session_has_the_image_of_its_first_cell(kernel: Kernel) -> None:
    good(kernel.run("%%gridx --session image-of\nx = 1"))
    ran = kernel.run("%%gridx --session image-of --image torch\nx = 2")
    assert "Session image-of has the image python, as its first cell asked" in said(ran)
    assert good(kernel.run("%%gridx --session image-of --image python\nprint(x)")) == "1\n"
    good(kernel.run("%gridx session stop image-of"))


# --- what a job waits for ---------------------------------------------------------------------


def test_a_cell_that_stands_still_with_its_lenders_pause_says_so(
    running: tuple[Coordinator, Worker], kernel: Kernel
) -> None:
    folder = Path(running[1].argv[running[1].argv.index("--data-dir") + 1])
    asked = kernel.start(
        "%%gridx\nimport time\nfor _ in range(30):\n    time.sleep(0.1)\nprint('done')"
    )
    waits_for = [("running 00:", "pause"), ("standing still at 00:", "resume")]
    ran = CellRun()
    for message in kernel.messages(asked, 60):
        ran.messages.append(message)
        if waits_for and waits_for[0][0] in str(message[2].get("data")):
            ask_worker(folder, Ask(command=waits_for.pop(0)[1]))
    kernel.client.get_shell_msg(timeout=30)
    assert good(ran) == "done\n"
    assert "(Paused by its lender: " in ran.plain
    assert "Time and cost stand still" in ran.plain
    assert ran.plain.rstrip().rpartition("Grid-X: ")[2].startswith("completed")


# --- what travels ----------------------------------------------------------------------------


def test_an_array_is_sent_once_and_an_edit_sends_its_part(kernel: Kernel) -> None:
    kernel.run("import numpy as np\nbig = np.random.default_rng(0).random(4 << 20)")  # 32 MiB
    good(kernel.run("%%gridx --as first\ntotal = float(big.sum())"))
    good(kernel.run("%%gridx --as second\ntotal = float(big.sum())"))
    good(kernel.run("big[0] = 7\n"))
    good(kernel.run("%%gridx --as third\nhead = float(big[0])"))
    sent = good(kernel.run("print(first.sent_bytes, second.sent_bytes, third.sent_bytes, head)"))
    first, second, third, head = map(float, sent.split())
    assert first > 30e6
    assert second < first / 100
    assert second < third < 9e6
    assert head == 7


def test_more_than_max_upload_is_asked_for_where_somebody_can_answer(kernel: Kernel) -> None:
    kernel.run("payload = bytearray(b'x' * (3 << 20))")
    refused = kernel.run("%%gridx --max-upload 1M\nn = len(payload)")
    assert "payload (3.0" in said(refused) or "payload (3 MiB)" in said(refused)
    assert "--max-upload 4M sends it" in said(refused)
    msg_id = kernel.start("%%gridx --max-upload 1M\nn = len(payload)", allow_stdin=True)
    assert "Send it?" in kernel.answer("y")
    good(kernel.finish(msg_id))
    assert good(kernel.run("print(n)")) == f"{3 << 20}\n"


def test_why_and_needs_say_what_is_taken_along(kernel: Kernel) -> None:
    kernel.run("k = 3\ndef f(x): return x * k")
    good(kernel.run("%%gridx\ny = f(2)"))
    why = good(kernel.run("%gridx why"))
    assert re.search(r"^ +k +\d+ B +\w", why, re.MULTILINE)
    assert "(completed)" in why
    needs = good(kernel.run("%gridx needs {n: f(n) for n in range(k)}"))
    assert re.search(r"^ +f +code", needs, re.MULTILINE)


# --- cache, local, prelude --------------------------------------------------------------------


def test_a_kept_result_is_used_again_until_told_otherwise(kernel: Kernel) -> None:
    cell = "%%gridx --cache{}\nimport time\nprint('here', base)\nat = time.time()"
    kernel.run("base = 'once'")
    first = kernel.run(cell.format(""))
    kernel.run("first_at = at")
    again = kernel.run(cell.format(""))
    assert good(again) == "here once\n"
    assert "from cache" in again.plain
    assert job_of(first) == job_of(again)
    assert good(kernel.run("print(at == first_at)")) == "True\n"
    assert "from cache" not in kernel.run(cell.format(" --fresh")).plain
    kernel.run("base = 'twice'")
    assert "from cache" not in kernel.run(cell.format("")).plain
    assert "results dropped" in good(kernel.run("%gridx cache clear"))
    assert good(kernel.run("%gridx cache")).startswith("0 results")


def test_a_local_cell_comes_home_as_from_a_worker(
    running: tuple[Coordinator, Worker], kernel: Kernel, home: Path
) -> None:
    before = running[0].get(f"/jobs?user_id={USER}")["jobs"]
    (home / "in.txt").write_text("up")
    kernel.run("a = [1]\nb = a\ndef double(x): return [x[0] * 2]")
    ran = kernel.run(
        "%%gridx --local --files in.txt --fetch out.txt\nimport os, pathlib\n"
        "print('one')\nos.system('echo two')\na.append(2)\nc = double(a)\n"
        "pathlib.Path('out.txt').write_text(pathlib.Path('in.txt').read_text() + ' home')\nc"
    )
    assert set(good(ran).split()) == {"one", "two"}
    assert "--local, without a sandbox" in ran.plain
    assert good(kernel.run("print(a, b is a, c, _)")) == "[1, 2] True [2] [2]\n"
    assert (home / "out.txt").read_text() == "up home"
    trace = said(kernel.run("%%gridx --local\nx = 1\nx / 0"))
    assert "----> 3 x / 0" in trace
    assert "RemoteTimeout" in said(kernel.run("%%gridx --local --timeout 1\nwhile True: pass"))
    assert running[0].get(f"/jobs?user_id={USER}")["jobs"] == before


def test_the_prelude_runs_first_in_every_cell(kernel: Kernel) -> None:
    good(kernel.run("%gridx prelude add import random; random.seed(4)"))
    assert "random.seed(4)" in good(kernel.run("%gridx prelude"))
    good(kernel.run("%%gridx\none = random.random()"))
    good(kernel.run("%%gridx\ntwo = random.random()"))
    assert good(kernel.run("print(one == two)")) == "True\n"
    assert "is not Python" in said(kernel.run("%gridx prelude add import"))
    kernel.run("import random\nrandom.seed(9)")
    good(kernel.run("%gridx prelude clear"))
    good(kernel.run("%gridx prelude --state"))
    good(kernel.run("%%gridx\nthere = random.random()"))
    assert good(kernel.run("print(there == random.random())")) == "True\n"


# --- sessions ---------------------------------------------------------------------------------


def test_a_session_keeps_what_cannot_come_home_and_sends_what_changed(kernel: Kernel) -> None:
    kernel.run("import numpy as np\ndata = np.ones(1 << 20)")
    first = kernel.run(
        "%%gridx --session s --as one\nimport threading\nlock = threading.Lock()\n"
        "lines = open('/dev/null')\nn = data.sum()\ndef part(x):\n    return n / x"
    )
    assert "kept closed, usable in later %%gridx cells: lines" in first.plain
    assert "usable in this session alone: lock" in first.plain
    assert good(kernel.run("%%gridx --session s\nprint(lock.locked())")) == "False\n"
    assert "return n / x" in said(kernel.run("%%gridx --session s\n\npart(0)"))
    assert "session s open" in first.plain
    ran = kernel.run("%%gridx --session s --as two\nprint(lines.name, n, data.sum())")
    assert good(ran) == "/dev/null 1048576.0 1048576.0\n"
    kernel.run("data[0] = 2")
    assert good(kernel.run("%%gridx --session s\nprint(data.sum())")) == "1048577.0\n"
    sent = good(kernel.run("print(one.sent_bytes, two.sent_bytes)")).split()
    assert int(sent[1]) < 2_000
    assert re.search(r"^s +running", good(kernel.run("%gridx session list")), re.MULTILINE)
    assert "has ended" in good(kernel.run("%gridx session stop s"))
    new = kernel.run("%%gridx --session s\nn = 2")
    assert job_of(new) != job_of(first)
    kernel.run("%gridx session stop s")


def test_a_module_that_was_edited_is_the_new_one_in_the_session(kernel: Kernel, home: Path) -> None:
    (home / "helper.py").write_text("def twice(x): return 2 * x\n")
    kernel.run("import importlib, helper\nfrom helper import twice")
    cell = "%%gridx --session s\nprint(helper.twice(6), twice(6))"
    assert good(kernel.run(cell)) == "12 12\n"
    (home / "helper.py").write_text("def twice(x): return 300 * x\n")
    kernel.run("importlib.reload(helper)\nfrom helper import twice")
    assert good(kernel.run(cell)) == "1800 1800\n"
    good(kernel.run("%gridx session stop s"))


def test_the_stop_button_stops_the_cell_and_keeps_the_session(kernel: Kernel) -> None:
    good(kernel.run("%%gridx --session s\nkept = iter([1, 2])"))
    msg_id = kernel.start("%%gridx --session s\nprint('begun', flush=True)\nwhile True: pass")
    for _, kind, _content in kernel.messages(msg_id, 60):
        if kind == "stream":
            kernel.manager.interrupt_kernel()
            break
    stopped = kernel.finish(msg_id)
    assert stopped.error is not None
    assert stopped.error["ename"] == "KeyboardInterrupt"
    assert good(kernel.run("%%gridx --session s\nprint(next(kept))")) == "1\n"
    good(kernel.run("%gridx session stop s"))


def test_a_session_is_found_again_after_a_restart(
    running: tuple[Coordinator, Worker], home: Path
) -> None:
    with start(running[0], home) as first:
        good(first.run("%%gridx --session long\nkept = open('/dev/null')\nplain = 5"))
    with start(running[0], home) as second:
        assert "long" in good(second.run("%gridx session list"))
        assert "is back" in good(second.run("%gridx session attach long"))
        kept = second.run("%%gridx --session long\nprint(kept.name, plain)")
        assert good(kept) == "/dev/null 5\n"
        good(second.run("%gridx session stop long"))
        shown = good(second.run(f"%gridx attach {job_of(kept)}"))
        assert shown == "/dev/null 5\n"
        assert "No session 'long' is open" in said(second.run("%gridx session stop long"))


def test_a_lost_session_says_that_its_variables_are_gone_and_the_next_cell_begins_anew(
    tmp_path: Path, home: Path
) -> None:
    with (
        Coordinator(tmp_path / "coordinator", *FAST) as coordinator,
        Worker(coordinator, tmp_path / "first", user=USER, sandbox="process") as worker,
        start(coordinator, home) as kernel,
    ):
        first = kernel.run("%%gridx --session s\nx = 1")
        worker.kill()
        job = job_of(first)
        wait_for(lambda: coordinator.get(f"/jobs/{job}")["status"] == "failed")
        with Worker(coordinator, tmp_path / "second", user=USER, sandbox="process"):
            ran = kernel.run("%%gridx --session s\nprint(x)")
        assert good(ran) == "1\n"
        assert "session s had ended" in said(ran)
        assert "a new one begins" in said(ran)


# --- every cell is remote ---------------------------------------------------------------------


def test_after_on_every_cell_is_remote_but_those_that_stay(kernel: Kernel) -> None:
    kernel.run("import os\nhere = os.getpid()")
    good(kernel.run("%gridx on"))
    ran = kernel.run("import os\nthere = os.getpid()\nthere != here")
    assert ran.plain.splitlines()[0].startswith("Grid-X")
    assert good(kernel.run("# gridx: local\nprint(os.getpid() == here)")) == "True\n"
    assert good(kernel.run("%%local\nprint(os.getpid() == here, there == here)")) == "True False\n"
    trace = said(kernel.run("# gridx: --cpus 0.5\nx = 1\nx / 0"))
    assert "----> 3 x / 0" in trace
    unknown = kernel.run("%%nosuchmagic\n1")
    assert unknown.error is not None or "not found" in said(unknown)
    assert "Cell magic `%%nosuchmagic` not found" in said(unknown)
    assert "as researcher" in good(kernel.run("%gridx status"))
    editor = kernel.finish(kernel.start("print(os.getpid() == here)", store_history=False))
    assert good(editor) == "True\n"
    good(kernel.run("%gridx off"))
    assert good(kernel.run("print(os.getpid() == here)")) == "True\n"


# --- interrupts -------------------------------------------------------------------------------

GATE = (
    "import time, pathlib\nprint('begun', flush=True)\n"
    "while not pathlib.Path({gate!r}).exists(): time.sleep(0.02)\nlanded = 'yes'"
)


def interrupt(kernel: Kernel, msg_id: str) -> None:
    for _, kind, _content in kernel.messages(msg_id, 60):
        if kind == "stream":
            kernel.manager.interrupt_kernel()
            return


@pytest.fixture
def gate() -> Iterator[Path]:
    """A file that a job of the process sandbox can see: its temporary folders are its own."""
    ROOT.joinpath(".cache").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gate-", dir=ROOT / ".cache") as folder:
        yield Path(folder) / "gate"


def test_a_detached_cell_goes_on_and_lands_between_cells(kernel: Kernel, gate: Path) -> None:
    msg_id = kernel.start("%%gridx --on-interrupt detach --as r\n" + GATE.format(gate=str(gate)))
    interrupt(kernel, msg_id)
    ran = kernel.finish(msg_id)
    assert ran.error is not None
    assert ran.error["ename"] == "KeyboardInterrupt"
    assert "goes on without this cell" in ran.plain
    gate.touch()
    kernel.run("r.ended.wait(30)")
    assert good(kernel.run("print(landed)")) == "yes\n"


def test_ask_puts_the_question_and_no_lets_it_go_on(kernel: Kernel, gate: Path) -> None:
    cell = "%%gridx --on-interrupt ask --as r\n" + GATE.format(gate=str(gate))
    msg_id = kernel.start(cell, allow_stdin=True)
    interrupt(kernel, msg_id)
    assert "it goes on without this cell" in kernel.answer("n")
    assert kernel.finish(msg_id).error is not None
    gate.touch()
    assert good(kernel.run("_ = r.wait(30)")).startswith("")
    assert good(kernel.run("print(landed, r.ok)")) == "yes True\n"


# --- results and jobs -------------------------------------------------------------------------


def test_a_background_cell_can_be_awaited(kernel: Kernel) -> None:
    kernel.run("%%gridx --bg --as r\nprint('from there')\nvalue = 6\nvalue * 7")
    ran = kernel.run("done = await r\nprint(done is r, value)")
    assert good(ran) == "from there\nTrue 6\n"
    kernel.run("%%gridx --bg --as bad\nraise LookupError('no')")
    caught = kernel.run("try:\n    await bad\nexcept LookupError as e:\n    print('caught', e)")
    assert "caught no" in good(caught)


def test_a_result_tells_all_about_its_cell(kernel: Kernel) -> None:
    good(kernel.run("%%gridx --as r\nprint('hi')\nx = 5\nx"))
    shown = good(
        kernel.run(
            "print(r.ok, r.state, r.values, r.stdout, r.error, r.files, r.worker != '', r.cost)\n"
            "print([o['output_type'] for o in r.outputs], r.seconds > 0, r.sent_bytes > 0)\n"
            "print(repr(r).startswith(f'<CellResult {r.job} completed on'), '\\n' in repr(r))"
        )
    )
    assert shown == (
        "True completed {'x': 5} hi\n None {} True 0.0\n"
        "['stream', 'execute_result'] True True\nTrue False\n"
    )
    again = kernel.run("before = r.job\nr.retry()")
    assert good(again) == "hi\n"
    assert good(kernel.run("print(r.job != before)")) == "True\n"


def test_the_value_of_the_last_expression_is_the_value_itself(kernel: Kernel) -> None:
    good(kernel.run("%%gridx\n{'a': [1, 2]}"))
    assert good(kernel.run("print(_['a'][1], type(Out[max(Out)]).__name__)")) == "2 dict\n"


def test_after_a_restart_a_job_is_attached_and_its_values_are_bound(
    running: tuple[Coordinator, Worker], home: Path, tmp_path: Path, gate: Path
) -> None:
    with start(running[0], home) as first:
        msg_id = first.start("%%gridx\nprint('early', flush=True)\n" + GATE.format(gate=str(gate)))
        for _, kind, _content in first.messages(msg_id, 60):
            if kind == "stream":
                break
        job = running[0].get(f"/jobs?user_id={USER}")["jobs"][0]["job_id"]
    gate.touch()
    with start(running[0], home) as second:
        second.run("mine = 1\n")
        assert re.search(f"{job}.*this one", good(second.run("%gridx jobs -a")))
        ran = second.run(f"%gridx attach {job}")
        assert good(ran).startswith("early\nbegun\n")
        assert good(second.run("print(landed)")) == "yes\n"
        second.run("landed = 'mine'")
        kept = good(second.run(f"%gridx result {job} --as r"))
        assert "landed was bound again here" in kept
        assert good(second.run("print(landed, r.values['landed'])")) == "mine yes\n"
        good(second.run(f"%gridx result {job} --replace"))
        assert good(second.run("print(landed)")) == "yes\n"
        raw = tmp_path / "raw"
        assert "not to be trusted" in good(second.run(f"%gridx result {job} --raw {raw}"))
        assert raw.stat().st_size > 0
        assert good(second.run(f"%gridx retry {job}")).endswith("begun\n")


def test_an_error_of_an_attached_job_stands_at_its_line(
    running: tuple[Coordinator, Worker], home: Path
) -> None:
    with start(running[0], home) as first:
        job = job_of(first.run("%%gridx\nz = 3\nz / 0"))
    with start(running[0], home) as second:
        trace = said(second.run(f"%gridx attach {job}"))
        assert "----> 3 z / 0" in trace
        assert good(second.run("print(z)")) == "3\n"


def test_a_job_from_elsewhere_shows_its_output_and_binds_nothing(
    running: tuple[Coordinator, Worker], kernel: Kernel
) -> None:
    job = running[0].submit(USER, "print('a script')")
    running[0].wait_job(job)
    ran = kernel.run(f"%gridx attach {job}")
    assert good(ran) == "a script\n"
    assert "Nothing is known of its cell" in said(ran)
    assert "Nothing is known" in said(kernel.run(f"%gridx retry {job}"))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%gridx set", "Settings: cpus"),
        ("%gridx set timeout", "timeout has its default"),
        ("%gridx cost", "of this notebook"),
        ("%gridx doctor", "the job connection stands"),
        ("%gridx workers", "process"),
        ("%gridx notify 60", "took longer than 1m00s"),
        ("%gridx notify off", "is not signalled"),
        ("%gridx session", "No session is open"),
        ("%gridx trust", "No worker is trusted"),
        ("%gridx help session", "close one"),
        ("%gridx help sessions", "10 idle minutes"),
    ],
)
def test_the_line_magic_answers(kernel: Kernel, line: str, words: str) -> None:
    assert words in good(kernel.run(line))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%gridx set cpu 2", "Did you mean cpus?"),
        ("%gridx set cpus none", "is not a number"),
        ("%gridx session stop", "needs the NAME"),
        ("%gridx prelude ad x", "Did you mean add?"),
        ("%gridx needs", "no code is given"),
        ("%gridx notify soon", "is not a time"),
        ("%gridx on --cpu 2", "Did you mean --cpus?"),
        ("%gridx attach job_" + "0" * 32, "There is no job"),
        ("%gridx trust nobody", "nobody"),
        ("%gridx logs {nothing.job}", "NameError"),
    ],
)
def test_a_wrong_line_says_what_to_do(kernel: Kernel, line: str, words: str) -> None:
    assert words in said(kernel.run(line))


def test_settings_hold_until_they_are_unset(kernel: Kernel, home: Path) -> None:
    config = home.parent / "config" / "gridx" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("[profile.short]\ntimeout = '1s'\n")
    assert "RemoteTimeout" in said(kernel.run("%%gridx --profile short\nwhile True: pass"))
    good(kernel.run("%gridx set timeout 1s"))
    assert "RemoteTimeout" in said(kernel.run("%%gridx\nwhile True: pass"))
    good(kernel.run("%gridx set timeout default"))
    good(kernel.run("%config GridX.timeout = '1s'"))
    assert "RemoteTimeout" in said(kernel.run("%%gridx\nwhile True: pass"))
    good(kernel.run("%config GridX.timeout = None"))
    good(kernel.run("%%gridx\nx = 1"))
    config.unlink()


def test_the_help_of_the_magic_is_twenty_lines_with_three_examples(kernel: Kernel) -> None:
    shown = kernel.run("%%gridx?")
    assert shown.reply["status"] == "ok"
    text = shown.reply["payload"][0]["data"]["text/plain"]
    doc = re.sub(r"\x1b\[[0-9;]*m", "", text).partition("File:")[0]
    assert doc.count("%%gridx\n") + doc.count("%%gridx --") >= 3
    assert len(doc.splitlines()) <= 30


# --- a terminal -------------------------------------------------------------------------------


def test_on_a_terminal_the_progress_is_one_line_that_is_written_over(
    running: tuple[Coordinator, Worker], tmp_path: Path
) -> None:
    script = tmp_path / "session.ipy"
    script.write_text(
        "get_ipython().run_line_magic('load_ext', 'gridx_jupyter')\n"
        "get_ipython().run_cell('%%gridx\\nimport time\\ntime.sleep(0.8)\\nprint(\"out\")')\n"
    )
    controller, terminal = pty.openpty()
    env = {
        **os.environ,
        "GRIDX_URL": running[0].http_url,
        "GRIDX_USER": USER,
        "IPYTHONDIR": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path),
        "TERM": "xterm",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=env,
        cwd=tmp_path,
        close_fds=True,
    )
    os.close(terminal)
    shown = b""
    while select.select([controller], [], [], 60)[0]:
        try:
            piece = os.read(controller, 65536)
        except OSError:  # the other end is closed: Linux says it so
            break
        if not piece:
            break
        shown += piece
    assert process.wait(30) == 0
    os.close(controller)
    text = shown.decode()
    assert "\rGrid-X: running 00:00 on" in text
    assert re.search(r"out\r\n", text)
    assert re.search(r"\rGrid-X: completed on .* job_[0-9a-f]{32} *\r\n", text)
