"""Script jobs in bash and JavaScript: what a terminal would show for ``bash job.sh``."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

import gridx
import worker
from gridx.resources import GIB, MIB
from gridx.states import Cause
from worker.runtime.child import NO_CELLS
from worker.runtime.frames import Cancel, Run

from .runtime_box import ProcessBox, container_box, process_box

# name: (code, stdout, stderr, exit code)
SCRIPTS: dict[str, tuple[str, str, str, int]] = {
    "prints": ("echo hi\necho é >&2", "hi\n", "é\n", 0),
    "nothing": ("", "", "", 0),
    "keeps a line without its end": ("printf a", "a", "", 0),
    "knows its name and no arguments": (
        'echo "$0" "$#" "${BASH_SOURCE[0]}"',
        "job.sh 0 job.sh\n",
        "",
        0,
    ),
    "has an empty stdin": ("cat; read x || echo nobody", "nobody\n", "", 0),
    "opens its streams by name": ("echo o >/dev/stdout\necho e >/dev/stderr", "o\n", "e\n", 0),
    "writes what is not UTF-8": (r"printf 'a\xff\xfeb\n'", "a��b\n", "", 0),
    "leaves with a code": ("exit 3", "", "", 3),
    "ends with its last command": ("true\nfalse", "", "", 1),
    "names the line that fails": (
        "set -e\necho before\nno_such_command\necho after",
        "before\n",
        "job.sh: line 3: no_such_command: command not found\n",
        127,
    ),
    "is not bash": ("if", "", "job.sh: line 2: syntax error: unexpected end of file\n", 2),
    "leaves a process behind": ("sleep 1000 & exit 0", "", "", 0),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_bash_script_does_what_a_terminal_shows(name: str) -> None:
    code, stdout, stderr, exit_code = SCRIPTS[name]
    with process_box() as box:
        outcome = box.run(code, language="bash")
    assert (outcome.stdout, outcome.stderr) == (stdout, stderr)
    assert outcome.exited.exit_code == exit_code
    assert outcome.exited.cause is (Cause.ERROR if exit_code else Cause.COMPLETED)
    said = f"The script left with exit code {exit_code}." if exit_code else ""
    assert outcome.exited.message == said


@pytest.mark.docker
def test_a_container_runs_bash_behind_its_filter() -> None:
    with container_box() as box:
        outcome = box.run(
            "pwd; echo $0; grep Seccomp: /proc/self/status; seq 3 | sort -r; exit 7",
            language="bash",
        )
    assert outcome.stdout == "/work\njob.sh\nSeccomp:\t2\n3\n2\n1\n"
    assert outcome.exited.message == "The script left with exit code 7."


@pytest.mark.docker
def test_a_command_that_takes_all_memory_is_out_of_memory() -> None:
    with container_box(memory_bytes=192 * MIB) as box:
        outcome = box.run("python3 -c 'x = bytearray(1 << 30)'; exit $?", language="bash")
    assert outcome.exited.cause is Cause.OUT_OF_MEMORY
    assert outcome.exited.usage.out_of_memory


def test_output_comes_while_the_script_runs() -> None:
    with process_box() as box:
        box.send(Run(kind="script", language="bash", code="echo 1; sleep 1000", timeout_s=60.0))
        box.collect_until("1\n")
        box.send(Cancel())
        assert box.collect().exited.cause is Cause.CANCELLED


def test_a_script_is_stopped_at_its_time_limit_with_what_it_started() -> None:
    with process_box() as box:
        outcome = box.run("sleep 1000 | sleep 1001", language="bash", timeout_s=0.5)
        box.hang_up()
        assert box.process.wait(30) == 0
    assert outcome.exited.cause is Cause.TIMEOUT
    assert outcome.exited.message == "Stopped at its time limit of 0.5 s."


@pytest.mark.parametrize(
    ("signal", "exit_code", "name"), [("SEGV", 139, "SIGSEGV"), ("KILL", 137, "SIGKILL")]
)
def test_a_script_that_a_signal_ends_has_crashed(signal: str, exit_code: int, name: str) -> None:
    with process_box() as box:
        outcome = box.run(f"printf before; kill -{signal} $$", language="bash")
    assert outcome.stdout == "before"
    assert outcome.exited.cause is Cause.CRASHED
    assert outcome.exited.exit_code == exit_code
    assert name in outcome.exited.message


def test_a_long_script_and_much_output_arrive_whole() -> None:
    lines = 40_000
    code = "\n".join(f"echo {number}" for number in range(lines))
    assert len(code) > 300_000  # more than one word of a command line may have
    with process_box() as box:
        outcome = box.run(code, language="bash")
    assert outcome.stdout == "".join(f"{number}\n" for number in range(lines))


def test_what_a_script_uses_is_metered() -> None:
    with process_box() as box:
        outcome = box.run("i=0; while ((i < 60000)); do ((i += 1)); done", language="bash")
    assert outcome.exited.usage.cpu_s > 0.01


def test_a_node_script_has_its_name_its_folder_and_its_own_traceback() -> None:
    code = "console.log(__filename, process.argv.length)\nconsole.error('e')\nnull.x\n"
    with process_box() as box:
        outcome = box.run(code, language="node")
    assert outcome.stdout.endswith("/job.js 2\n")
    assert outcome.stderr.startswith("e\n")
    assert "job.js:3\n" in outcome.stderr
    assert "TypeError" in outcome.stderr
    assert outcome.exited.message == "The script left with exit code 1."


def test_a_node_script_ends_when_nothing_is_left_to_do() -> None:
    code = "setTimeout(() => console.log('later'), 20); console.log('now')"
    # The address space that the process sandbox leaves to a job of 1 GiB.
    with process_box("--limit", f"as={3 * GIB}") as box:
        outcome = box.run(code, language="node")
    assert outcome.stdout == "now\nlater\n"
    assert outcome.exited.cause is Cause.COMPLETED


def test_a_language_that_is_not_in_the_image_is_said_in_a_sentence() -> None:
    with process_box() as box:
        outcome = box.run("x", language="cobol")
    assert outcome.exited.cause is Cause.ERROR
    assert outcome.exited.exit_code == 127
    assert outcome.exited.message == "This image has no cobol, so it cannot run the script."


@contextmanager
def _lean_box(folder: Path) -> Iterator[ProcessBox]:
    """Start the runtime as an image does that has nothing but msgspec beside it."""
    (folder / "lib").mkdir()
    (folder / "site").mkdir()
    for package in (gridx, worker):
        (folder / "lib" / package.__name__).symlink_to(Path(str(package.__file__)).parent)
    (folder / "site" / "msgspec").symlink_to(Path(msgspec.__file__).parent)
    supervisor = folder / "lib" / "worker" / "runtime" / "supervisor.py"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(supervisor), "--process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
    )
    box = ProcessBox(process)
    try:
        box.wait_ready()
        yield box
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.wait(timeout=60)
        process.stdout.close()


def test_an_image_without_ipython_runs_scripts(tmp_path: Path) -> None:
    with _lean_box(tmp_path) as box:
        assert box.run("echo hi", language="bash").stdout == "hi\n"


def test_an_image_without_ipython_says_that_it_runs_no_cells(tmp_path: Path) -> None:
    with _lean_box(tmp_path) as box:
        outcome = box.run("1 + 1", kind="cell")
    assert outcome.exited.message == NO_CELLS
