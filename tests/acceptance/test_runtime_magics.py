"""IPython's magics in a real container: as in a kernel where they make sense, else refused."""

from __future__ import annotations

import re

import pytest

from gridx.events import DisplayData, ErrorOutput, ExecuteResult
from gridx.states import Cause

from .runtime_box import container_box
from .test_runtime_cells import said

pytestmark = pytest.mark.docker

ONE_FIGURE = [("display", "<Figure size 640x480 with 1 Axes> + image/png")]
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"

WORKS: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "%cd and %pwd": (
        "%cd /tmp\nimport os\nprint(os.getcwd())\n%pwd",
        [("stdout", "/tmp\n/tmp\n"), ("result", "'/tmp'")],
    ),
    "%env": (
        "%env FOO=bar\nimport os\nprint(os.environ['FOO'])\n!echo $FOO",
        [("stdout", "env: FOO=bar\nbar\nbar\n")],
    ),
    "%matplotlib inline": ("%matplotlib inline\n" + PLOT, ONE_FIGURE),
    "%config of figures": ("%config InlineBackend.figure_formats = ['png']\n" + PLOT, ONE_FIGURE),
    "%%writefile and %run": (
        "%%writefile s.py\ny = 3\nprint(__name__, y)",
        [("stdout", "Writing s.py\n")],
    ),
    "%run binds names": (
        "open('s.py', 'w').write('y = 3\\nprint(__name__, y)')\n%run s.py\nprint(y)",
        [("stdout", "__main__ 3\n3\n")],
    ),
    "%run of a script that fails shows its lines, and the cell goes on": (
        "open('s.py', 'w').write('def f():\\n    1 / 0\\nf()')\n%run s.py\nprint('on')",
        [
            (
                "stderr",
                'Traceback (most recent call last):\n  File "/work/s.py", line 3, in <module>\n'
                '    f()\n  File "/work/s.py", line 2, in f\n    1 / 0\n    ~~^~~\n'
                "ZeroDivisionError: division by zero\n",
            ),
            ("stdout", "on\n"),
        ],
    ),
    "%run of a script that exits says with what": (
        "open('s.py', 'w').write('import sys\\nsys.exit(3)')\n%run s.py\nprint('on')",
        [("stderr", "SystemExit: 3\n"), ("stdout", "on\n")],
    ),
    "%%bash": ("%%bash\necho a\necho b >&2", [("stdout", "a\n"), ("stderr", "b\n")]),
    "%%bash that fails": ("%%bash\necho a\nexit 3", [("stdout", "a\n"), ("error", "CalledProcessError")]),
    "%%script": ("%%script sh\necho a", [("stdout", "a\n")]),
    "out = !cmd": (
        "out = !printf 'a\\nb\\n'\nprint(out, out.n)",
        [("stdout", "['a', 'b'] a\nb\n")],
    ),
    "!cmd with names of the cell": ("x = 'hi'\n!echo $x {x * 2}", [("stdout", "hi hihi\n")]),
    "%sx": ("%sx echo a", [("result", "['a']")]),
    "%%capture": (
        "%%capture out\nimport sys\nprint('a')\nprint('b', file=sys.stderr)\ndisplay(1)\n2",
        [],
    ),
    "%%capture of a cell that fails": (
        "%%capture out\nprint('a')\n1 / 0",
        [
            (
                "stderr",
                'Traceback (most recent call last):\n  File "<inner cell 1>", line 2, in <module>\n'
                "    1 / 0\n    ~~^~~\nZeroDivisionError: division by zero\n",
            )
        ],
    ),
    "a cell that a cell has run": (
        "result = get_ipython().run_cell('x = )')\nprint(result.success)",
        [
            (
                "stderr",
                '  File "<inner cell 1>", line 1\n    x = )\n        ^\n'
                "SyntaxError: unmatched ')'\n",
            ),
            ("stdout", "False\n"),
        ],
    ),
    "what %%capture has captured": (
        "from IPython.utils.capture import capture_output\nwith capture_output() as out:\n"
        "    print('a')\n    display(5)\nprint('then')\nout.show()",
        [("stdout", "then\na\n"), ("display", "5")],
    ),
    "%%time and its value": ("%%time\nx = 5\nx", [("stdout", "TIMES"), ("result", "5")]),
    "%time and its value": ("%time 1 + 1", [("stdout", "TIMES"), ("result", "2")]),
    "%timeit": ("%timeit -n1 -r1 pass", [("stdout", "TIMES")]),
    "%who": ("a = 1\n%who", [("stdout", "a\t \n")]),
    "%reset": ("a = 1\n%reset -f\nprint('a' in globals())", [("stdout", "False\n")]),
    "%%html": ("%%html\n<b>x</b>", [("display", "<IPython.core.display.HTML object>")]),
    "help": ("len?", [("stdout", "HELP")]),
    "a window that is not there": (
        "%matplotlib qt\n" + PLOT,
        [
            (
                "stderr",
                "%matplotlib qt needs a screen or a widget, and there is none here: figures are "
                "shown inline.\n",
            ),
            *ONE_FIGURE,
        ],
    ),
}  # fmt: skip


def shortened(events: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return ``events`` with what differs from run to run replaced."""
    times = r"(CPU times: .*\nWall time: .*\n|.* per loop \(mean.*\)\n)"
    events = [(kind, re.sub(rf"\A{times}\Z", "TIMES", text)) for kind, text in events]
    return [(k, "HELP" if t.startswith("Signature: len(obj") else t) for k, t in events]


@pytest.mark.parametrize("name", WORKS)
def test_a_magic_works_as_in_a_kernel(name: str) -> None:
    code, expected = WORKS[name]
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    assert shortened(said(outcome)) == expected
    failed = bool(expected) and expected[-1][0] == "error"
    assert outcome.exited.cause is (Cause.ERROR if failed else Cause.COMPLETED)


REFUSED = {
    "%pip install x": "a sandbox has no network",
    "pip install x": "a sandbox has no network",
    "%conda install x": "a sandbox has no network",
    "%history": "the history of your notebook",
    "%recall 1": "the history of your notebook",
    "%load a.py": "your editor",
    "%edit a.py": "your editor",
    "%debug": "somebody to answer",
    "%gui qt": "a screen",
    "breakpoint()\nx = 1": "A debugger cannot ask anybody here",
    "input('name? ')": "pass the value as a variable",
    "import getpass\ngetpass.getpass()": "pass the value as a variable",
    "%%nothing_of_that_name\nx": "not found",
}


def test_what_cannot_work_says_so_and_what_to_do() -> None:
    with container_box() as box:
        for call, (code, words) in enumerate(REFUSED.items()):
            outcome = box.call(call, code)
            [error] = outcome.of(ErrorOutput)
            assert words in error.error["message"], code
            assert outcome.call_exited.cause is Cause.ERROR
            assert outcome.stderr == "", code


def test_a_refused_magic_can_be_looked_up() -> None:
    with container_box() as box:
        outcome = box.run("%pip?", kind="cell")
    assert "a sandbox has no network" in outcome.stdout


def test_a_figure_that_is_also_the_last_expression_is_shown_twice() -> None:
    code = "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nax.plot([1])\nfig"
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    assert [type(event) for event in outcome.events] == [ExecuteResult, DisplayData]
    assert all("image/png" in event.binary for event in outcome.events)  # type: ignore[union-attr]


def test_a_display_is_updated_by_its_id_from_anywhere() -> None:
    code = (
        "import threading\nh = display('a', display_id=True)\n"
        "t = threading.Thread(target=h.update, args=('b',))\nt.start()\nt.join()\n"
        "display('c', display_id=h.display_id, update=True);"
    )
    with container_box() as box:
        outcome = box.run(code, kind="cell")
    assert said(outcome) == [("display", "'a'"), ("update", "'b'"), ("update", "'c'")]
    assert len({event.display_id for event in outcome.events}) == 1  # type: ignore[union-attr]
