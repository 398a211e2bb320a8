"""What travels with a cell, from a real kernel into a real container."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.kernels import Kernel
from tests.support.programs import grid

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the notebook."""
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def kernel(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with (
        grid(tmp_path_factory.mktemp("grid")) as (coordinator, _),
        Kernel(coordinator.http_url, "collector", cwd=folder) as kernel,
    ):
        yield kernel


def test_a_package_beside_the_notebook_runs_there_as_it_is_on_disk(
    kernel: Kernel, folder: Path
) -> None:
    for name, text in {
        "tools/__init__.py": "from .inner import scale\n",
        "tools/inner.py": "from importlib import resources\n"
        "def scale(x):\n"
        "    return x * int(resources.files('tools').joinpath('factor.txt').read_text())\n",
        "tools/factor.txt": "3",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    kernel.run("import tools")
    cell = "%%gridx\nimport inspect\nprint(tools.scale(2), inspect.getsource(tools.scale)[:9])"
    assert kernel.run(cell).stdout.startswith("6 def scale")
    inner = folder / "tools/inner.py"
    inner.write_text(inner.read_text().replace("x * int", "100 + int"))
    ran = kernel.run(cell)
    assert ran.stdout.startswith("103 ")
    assert "tools/inner.py has changed since it was imported here" in ran.plain + str(ran.messages)


def test_a_package_that_the_image_lacks_is_refused_before_anything_is_sent(
    kernel: Kernel,
) -> None:
    before = kernel.run("%gridx jobs -a").stdout.count("job_")
    error = kernel.run("%%gridx\nimport polars\nprint(polars.__version__)").error
    assert error is not None
    text = " ".join([error["evalue"], *error["traceback"]])
    assert re.search(r"polars \d[\d.]*, which the image \S+ lacks", text)
    assert "Have it installed there: --pip polars==" in text
    assert kernel.run("%gridx jobs -a").stdout.count("job_") == before


def test_an_edited_column_is_the_only_thing_that_is_sent_again(kernel: Kernel) -> None:
    kernel.run(
        "import numpy as np, pandas as pd\n"
        "df = pd.DataFrame(np.random.default_rng(1).random((200_000, 10)), columns=list('abcdefghij'))\n"
        "df['words'] = ['row %d' % i for i in range(len(df))]"
    )
    cell = "%%gridx --quiet --as run --no-out\nprint(round(df.a.sum(), 3), df.words.iloc[-1])"
    kernel.run(cell)
    first = int(kernel.run("print(run.sent_bytes)").stdout)
    assert (
        kernel.run(cell).stdout
        == kernel.run("print(round(df.a.sum(), 3), df.words.iloc[-1])").stdout
    )
    again = int(kernel.run("print(run.sent_bytes)").stdout)
    kernel.run("df.loc[7, 'c'] = 0.5")
    kernel.run(cell)
    edited = int(kernel.run("print(run.sent_bytes)").stdout)
    assert first > 10_000_000
    assert again < first / 100
    assert 1_000_000 < edited < 1_700_000  # one column of 200,000 numbers
