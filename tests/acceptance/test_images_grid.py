"""Images, packages and other languages, against the three real programs and real containers.

Packages come from a folder of wheels: what a worker installs is tried here, not an index.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gridx_command import environment, gridx
from tests.support.kernels import CellRun, Kernel
from tests.support.programs import Coordinator, Worker
from tests.support.wheels import make_wheel
from worker.images import engine_client
from worker.images.families import build_family

pytestmark = pytest.mark.docker

FAMILY = "acceptance"
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The only place where pip finds packages."""
    folder = tmp_path_factory.mktemp("index")
    make_wheel(folder, "gridxprobe", files={"gridxprobe.py": "def answer():\n    return 42\n"})
    make_wheel(
        folder, "gridxprobe", "2.0", files={"gridxprobe.py": "def answer():\n    return 2\n"}
    )
    make_wheel(folder, "gridxkit", requires=["gridxprobe==1.0"])
    return folder


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory, index: Path) -> Iterator[Coordinator]:
    """A grid whose worker has an image of its lender's own beside the usual ones."""
    base = tmp_path_factory.mktemp("grid")
    env = {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
        "XDG_CACHE_HOME": str(base / "cache"),
    }
    api = engine_client(timeout_s=120)
    before = {tag for image in api.images() for tag in image["RepoTags"] or ()}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        build_family(api, FAMILY, ["gridxprobe==2.0"], PYTHON, lambda _: None)
    try:
        with (
            Coordinator(base / "coordinator") as coordinator,
            Worker(coordinator, base / "worker", "--images", FAMILY, env=env),
        ):
            yield coordinator
    finally:
        for image in api.images(filters={"label": "gridx.image"}):
            for tag in image["RepoTags"] or ():
                if tag not in before and tag.startswith(("gridx/env:", f"gridx/{FAMILY}:")):
                    api.remove_image(tag)
        api.close()


@pytest.fixture(scope="module")
def kernel(coordinator: Coordinator) -> Iterator[Kernel]:
    with Kernel(coordinator.http_url, "researcher") as kernel:
        yield kernel


def good(ran: CellRun) -> str:
    assert ran.error is None, ran.error
    return ran.stdout


def said(ran: CellRun) -> str:
    """Return everything that a cell has shown, as text."""
    errors = "".join("\n".join(c["traceback"]) for _, k, c in ran.messages if k == "error")
    streams = "".join(c["text"] for _, k, c in ran.messages if k == "stream")
    return re.sub(r"\x1b\[[0-9;]*m", "", f"{streams}\n{ran.plain}\n{errors}")


def test_packages_are_installed_for_a_cell_and_there_at_once_the_next_time(
    kernel: Kernel,
) -> None:
    cell = "%%gridx --pip gridxkit\nimport gridxprobe\nfound = gridxprobe.answer()"
    first = kernel.run(cell)
    assert first.error is None, said(first)
    assert "Installing" in first.plain
    assert good(kernel.run("print(found)")) == "42\n"
    good(kernel.run(cell))


def test_a_package_that_cannot_be_installed_is_an_error_with_the_words_of_pip(
    kernel: Kernel,
) -> None:
    ran = kernel.run("%%gridx --pip gridxprobe==9.9\nx = 1")
    assert ran.error is not None
    assert ran.error["ename"] == "EnvironmentFailed"
    assert "gridxprobe==9.9" in said(ran)
    assert "cost 0" in ran.plain


def test_the_image_that_is_named_runs_the_cell(kernel: Kernel) -> None:
    ran = kernel.run(f"%%gridx --image {FAMILY}\nimport gridxprobe\nprint(gridxprobe.answer())")
    assert good(ran) == "2\n"


def test_a_module_that_only_another_image_has_is_refused_with_both_ways_out(
    kernel: Kernel, index: Path, tmp_path: Path
) -> None:
    installed = tmp_path / "site-packages"
    with zipfile.ZipFile(index / "gridxprobe-2.0-py3-none-any.whl") as wheel:
        wheel.extractall(installed)
    kernel.run(f"import sys; sys.path.insert(0, {str(installed)!r})")
    text = said(kernel.run("%%gridx\nimport gridxprobe"))
    kernel.run("del sys.path[0]; sys.modules.pop('gridxprobe', None)")
    assert "This cell needs gridxprobe 2.0, which the image" in text
    assert "Have it installed there: --pip gridxprobe==2.0" in text
    assert f"use the image that has it: --image {FAMILY}" in text


def test_an_image_that_nobody_has_is_refused_with_those_that_there_are(kernel: Kernel) -> None:
    text = said(kernel.run("%%gridx --image acceptence\nx = 1"))
    assert f"There is: {FAMILY}, python." in text
    assert f"Did you mean --image {FAMILY}?" in text


def test_a_cell_may_be_a_bash_script_in_a_container_of_its_own(kernel: Kernel) -> None:
    code = (
        "%%gridx --language bash\npwd; python3 -c 'import IPython' 2>/dev/null || echo lean; exit 3"
    )
    ran = kernel.run(code)
    assert ran.stdout == "/work\nlean\n"
    assert ran.error is not None
    assert ran.error["evalue"].startswith("The script left with exit code 3.")


def test_the_folder_of_a_cell_is_as_large_as_was_asked(kernel: Kernel) -> None:
    cell = "%%gridx --disk 16M\nimport shutil\nprint(shutil.disk_usage('.').total >> 20)"
    assert good(kernel.run(cell)) == "16\n"


def test_a_dry_run_says_what_is_there_and_what_would_be_installed(kernel: Kernel) -> None:
    text = good(kernel.run("%%gridx --dry-run --pip numpy gridxprobe\nx = 1"))
    assert f"Image: python (Python {PYTHON}), of " in text
    assert "Packages: gridxprobe (to be installed), numpy (there already)." in text


def test_a_session_keeps_its_packages(kernel: Kernel) -> None:
    good(kernel.run("%%gridx --session kit --pip gridxprobe==1.0\nimport gridxprobe"))
    cell = "%%gridx --session kit\nprint(gridxprobe.answer())"
    assert good(kernel.run(cell)) == "42\n"
    other = kernel.run("%%gridx --session kit --pip gridxkit\nx = 1")
    assert "Session kit has the image python with gridxprobe==1.0" in said(other)
    good(kernel.run("%gridx session stop kit"))


def test_files_are_submitted_in_their_language_with_packages(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    env = environment(tmp_path, GRIDX_URL=coordinator.http_url, GRIDX_USER="researcher")
    (tmp_path / "job.sh").write_text("echo $BASH_VERSINFO; exit 4")
    done = gridx("submit", str(tmp_path / "job.sh"), env=env)
    assert (done.returncode, int(done.stdout) > 3) == (4, True)
    (tmp_path / "job.py").write_text("import gridxprobe; print(gridxprobe.answer())")
    done = gridx("submit", str(tmp_path / "job.py"), "--pip", "gridxprobe==1.0", env=env)
    assert done.stdout == "42\n"
    done = gridx("submit", str(tmp_path / "job.py"), "--image", FAMILY, env=env)
    assert done.stdout == "2\n"


def test_the_list_of_workers_says_what_they_run(coordinator: Coordinator, tmp_path: Path) -> None:
    env = environment(tmp_path, GRIDX_URL=coordinator.http_url, GRIDX_USER="researcher")
    text = gridx("workers", env=env).stdout
    assert all(len(line) <= 100 for line in text.splitlines()[:2])
    assert f"{FAMILY} {PYTHON}" in text
    assert "+pip" in text
    (worker,) = json.loads(gridx("workers", "--json", env=env).stdout)
    assert worker["capability"]["environments"] is True
