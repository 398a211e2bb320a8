"""Errors of remote cells in a real kernel, beside the same cell run here: type, text, traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.kernels import Kernel
from tests.support.programs import grid

USER = "scientist"
EARLIER = """\
import functools
def outer(n):
    total = n
    def inner(k, *rest, flag=False, **kw):
        return total / k
    return inner
class Stack:
    def __init__(self):
        self.items = []
    def pop(self):
        return self.items.pop()
    @property
    def top(self):
        return self.items[-1]
    @classmethod
    def make(cls):
        return cls().pop()
def gen(n):
    for i in range(n):
        yield 1 / (n - i - 1)
def deco(f):
    @functools.wraps(f)
    def wrapper(*args, **kw):
        return f(*args, **kw)
    return wrapper
@deco
def decorated(a, b=2):
    return a / (b - 2)
async def wait(x):
    return x['missing']
lam = lambda q: q.nope
def fact(n):
    return n * fact(n - 1)
def multi(a):
    return (
        a
        + a['x']
    )
def chained():
    try:
        return {}['a']
    except KeyError as exc:
        raise ValueError('no a') from exc
def handled():
    try:
        return {}['a']
    except KeyError:
        return 1 / 0
class Mine(ValueError):
    def __init__(self, first, second):
        super().__init__(f'{first}-{second}')
        self.second = second
"""
CASES = [
    # one of each family of builtin exceptions
    "1 / 0",
    "{}['k']",
    "[][3]",
    "None.x",
    "undefined_thing",
    "int('x')",
    "'a' + 1",
    "open('/nope/file')",
    "raise OSError(5, 'io', 'f.txt')",
    "raise TimeoutError('late')",
    "import nope_module",
    "from math import nope",
    "assert 1 == 2, 'nope'",
    "b'\\xff'.decode()",
    "2.0 ** 10_000",
    "raise NotImplementedError",
    "raise UserWarning('w')",
    "raise EOFError('end')",
    "raise BufferError('b')",
    "raise ReferenceError('r')",
    "raise Exception('plain')",
    # where it happened
    "x = 1\nfor i in range(3):\n    y = [1, 2,\n         3][i + 2]",
    "class A:\n    b = 1\n    c = b / 0",
    "[1 / v for v in (1, 0)]",
    "sum(1 / v for v in (1, 0))",
    "def f(a, *, k=1):\n    def g():\n        return a / k\n    return g()\nf(1, k=0)",
    "outer(3)(0)",
    "Stack().top",
    "Stack.make()",
    "list(gen(3))",
    "decorated(1)",
    "await wait({})",
    "lam(3)",
    "multi({})",
    "# a comment first\n\nx = 1\nx / 0",
    # chains, notes, the user's own
    "raise RuntimeError('a') from None",
    "e = ValueError('noted')\ne.add_note('first note')\ne.add_note('second')\nraise e",
    "raise ValueError('two\\nlines')",
    "raise ValueError",
    "raise Mine('a', 2)",
    "class Here(KeyError): pass\nraise Here('q')",
    # before it runs
    "x = (1,",
    "if True:\nprint(1)",
    "x = = 1",
    "return 5",
]
ANSI = re.compile(r"\x1b\[[0-9;]*m")
CELL = re.compile(r"Cell In ?\[\d+\]")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kernel, Kernel]]:
    home: Path = tmp_path_factory.mktemp("grid")
    with (
        grid(home, sandbox="process", lender=USER) as (coordinator, _),
        Kernel(coordinator.http_url, USER) as here,
        Kernel(coordinator.http_url, USER) as there,
    ):
        here.run(EARLIER)
        there.run(EARLIER)
        yield here, there


def shown(error: dict[str, Any] | None) -> tuple[str, str, str]:
    """Return type, text and traceback of ``error`` without colours and cell numbers."""
    assert error is not None
    text = CELL.sub("Cell In[N]", ANSI.sub("", "\n".join(error["traceback"])))
    value = re.sub(r"\([^()]*\.py, line", "(cell, line", str(error["evalue"]))
    # What Grid-X adds of its own below an import that failed.
    text = text.partition("\nThe worker's image does not have it")[0]
    return str(error["ename"]), value, text


@pytest.mark.parametrize("cell", CASES)
def test_an_error_reads_as_if_the_cell_had_run_here(
    kernels: tuple[Kernel, Kernel], cell: str
) -> None:
    here, there = kernels
    wanted = shown(here.run(f"# %gridx\n{cell}").error)
    found = shown(there.run(f"%%gridx\n{cell}").error)
    assert found[:2] == wanted[:2]
    assert found[2].replace("%%gridx", "# %gridx") == wanted[2]


@pytest.mark.parametrize(
    ("cell", "first", "second"),
    [("chained()", "direct cause of", 41), ("handled()", "During handling of", 46)],
)
def test_a_chain_is_shown_whole_with_the_line_that_raised_first(
    kernels: tuple[Kernel, Kernel], cell: str, first: str, second: int
) -> None:
    here, there = kernels
    wanted = shown(here.run(f"# %gridx\n{cell}").error)
    found = shown(there.run(f"%%gridx\n{cell}").error)
    assert found[:2] == wanted[:2]
    assert first in found[2]
    # A kernel's own formatter points at the last line that the frame has reached.
    assert f"---> {second}         return {{}}['a']" in found[2]
    assert found[2].splitlines()[-9:] == wanted[2].replace("# %gridx", "%%gridx").splitlines()[-9:]


@pytest.mark.parametrize("cell", ["def r(n):\n    return r(n + 1)\nr(0)", "fact(3)"])
def test_a_recursion_is_shown_as_deep_as_it_went(kernels: tuple[Kernel, Kernel], cell: str) -> None:
    here, there = kernels
    wanted = shown(here.run(f"# %gridx\n{cell}").error)
    found = shown(there.run(f"%%gridx\n{cell}").error)
    assert found[:2] == wanted[:2]
    for part in (slice(0, 20), slice(-6, None)):
        there_lines = found[2].replace("%%gridx", "# %gridx").splitlines()
        assert there_lines[part] == wanted[2].splitlines()[part]
    assert 500 < found[2].count("Cell In[N]") < 1_100


def test_a_library_shows_its_own_lines_below_those_of_the_cell(
    kernels: tuple[Kernel, Kernel],
) -> None:
    _, there = kernels
    name, text, trace = shown(there.run("%%gridx\nimport json\njson.loads('{bad')").error)
    assert (name, text.partition(":")[0]) == (
        "JSONDecodeError",
        "Expecting property name enclosed in double quotes",
    )
    assert "----> 3 json.loads('{bad')" in trace
    assert "json/decoder.py" in trace
    assert "obj, end = self.raw_decode(s, idx=_w(s, 0).end())" in trace
    assert "Could not get source" not in trace


def test_a_group_is_shown_with_its_members(kernels: tuple[Kernel, Kernel]) -> None:
    _, there = kernels
    ran = there.run("%%gridx\nraise ExceptionGroup('two', [ValueError(1), KeyError('k')])")
    name, _, trace = shown(ran.error)
    assert name == "ExceptionGroup"
    assert "ExceptionGroup: two (2 sub-exceptions)" in trace
    assert "| ValueError: 1" in trace
    assert "| KeyError: 'k'" in trace


@pytest.mark.parametrize("cell", ["import sys\nsys.exit(3)", "raise KeyboardInterrupt"])
def test_what_would_end_the_kernel_stops_the_cell_alone(
    kernels: tuple[Kernel, Kernel], cell: str
) -> None:
    _, there = kernels
    there.run(f"%%gridx\n{cell}")
    assert there.run("print('alive')").stdout == "alive\n"


def test_an_error_can_be_caught_by_its_class_and_as_a_remote_one(
    kernels: tuple[Kernel, Kernel],
) -> None:
    _, there = kernels
    ran = there.run(
        "import gridx.remote_error\n"
        "def catch(cell):\n"
        "    try:\n"
        "        get_ipython().run_cell_magic('gridx', '', cell)\n"
        "    except gridx.remote_error.RemoteError as error:\n"
        "        return error\n"
        "print(isinstance(catch('int(\"x\")'), ValueError))\n"
        "print(isinstance(catch('raise Mine(1, 2)'), Mine), catch('raise Mine(1, 2)').second)\n"
        "print(isinstance(catch('open(\"/nope\")'), FileNotFoundError), catch('open(\"/nope\")').errno)"
    )
    assert ran.stdout.split() == ["True", "True", "2", "True", "2"]
