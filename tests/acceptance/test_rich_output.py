"""Rich output of real cells, from a real container into a real kernel: as it is shown here."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from gridx.identity import fingerprint
from tests.support.kernels import CellRun, Kernel
from tests.support.programs import grid

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    folder = tmp_path_factory.mktemp("grid")
    with grid(folder) as (coordinator, _):
        with Kernel(
            coordinator.http_url, "researcher", XDG_CONFIG_HOME=str(folder / "config")
        ) as made:
            yield made


def bundles(ran: CellRun) -> list[dict[str, object]]:
    """Return what the cell showed beside its own line."""
    assert ran.error is None, ran.error
    found = [content["data"] for _, _, content in ran.messages if "data" in content]
    return [data for data in found if not str(data.get("text/plain", "")).startswith("Grid-X")]


def shown(kernel: Kernel, code: str, options: str = "") -> dict[str, object]:
    (data,) = bundles(kernel.run(f"%%gridx {options}\n{code}"))
    return data


def test_a_table_has_the_same_text_and_the_same_cells(kernel: Kernel) -> None:
    code = "import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', '<b>']})"
    there, here = shown(kernel, code), bundles(kernel.run(code))[0]
    assert there.keys() == here.keys() == {"text/plain", "text/html"}
    assert there["text/plain"] == here["text/plain"]
    cells = [
        re.findall(r"<t[dh]>([^<]*)</t[dh]>", str(each["text/html"])) for each in (there, here)
    ]
    assert cells[0] == cells[1]
    assert "<style" not in str(there["text/html"])


def test_a_formula_is_the_formula(kernel: Kernel) -> None:
    code = "import sympy\nx = sympy.symbols('x')\nsympy.Integral(x**2, x)"
    there = shown(kernel, code)
    assert str(there["text/latex"]).startswith("$\\displaystyle \\int")


def test_markdown_and_drawings_are_shown(kernel: Kernel) -> None:
    there = shown(kernel, "from IPython.display import Markdown\nMarkdown('**bold** $x_1$')")
    assert there["text/html"] == "<p><strong>bold</strong> $x_1$</p>"
    code = (
        "import matplotlib.pyplot as plt\n%config InlineBackend.figure_formats = ['svg']\n"
        "plt.imshow([[1, 2], [3, 4]]);"
    )
    there = shown(kernel, code)
    assert str(there["text/html"]).startswith('<img alt="drawing"')


def test_a_figure_is_a_png_as_before(kernel: Kernel) -> None:
    there = shown(kernel, "import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    assert there.keys() == {"text/plain", "image/png"}


def test_json_is_a_tree(kernel: Kernel) -> None:
    there = shown(kernel, "from IPython.display import JSON\nJSON({'a': [1, {'b': None}]})")
    assert there["application/json"] == {"a": [1, {"b": None}]}


def test_a_model_is_its_text_and_the_line_says_how_to_see_its_diagram(kernel: Kernel) -> None:
    code = "from sklearn.linear_model import Ridge\nRidge()"
    ran = kernel.run(f"%%gridx\n{code}")
    assert bundles(ran)[0].keys() == {"text/plain"}
    assert "it needs its own style sheet; --show interactive" in ran.plain
    there = shown(kernel, code, "--show interactive")
    assert 'sandbox="allow-scripts"' in str(there["text/html"])
    assert shown(kernel, code, "--show text").keys() == {"text/plain"}


def test_a_worker_that_is_trusted_needs_no_option(kernel: Kernel) -> None:
    code = "from IPython.display import HTML\nHTML('<script>1</script>plot')"
    assert "<iframe" not in str(shown(kernel, code)["text/html"])
    key = kernel.run(
        "import gridx.blocking, gridx.settings\n"
        "client = gridx.blocking.BlockingClient(gridx.settings.load())\n"
        "(worker,) = client.workers()\nclient.close()\nprint(worker.public_key)"
    ).stdout.strip()
    trusted = kernel.run(f"%gridx trust {fingerprint(key)}")
    assert fingerprint(key) in trusted.stdout
    assert "nothing of it is unpickled" in trusted.stdout
    assert "<iframe" in str(shown(kernel, code)["text/html"])
    assert "<iframe" not in str(shown(kernel, code, "--show clean")["text/html"])
    assert "No longer trusted" in kernel.run(f"%gridx untrust {fingerprint(key)}").stdout
    assert "<iframe" not in str(shown(kernel, code)["text/html"])
