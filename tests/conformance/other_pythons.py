"""Sends cells from this Python to others, and compares what they print there and here.

    python -m tests.conformance.other_pythons PYTHON...

Each PYTHON is an interpreter with cloudpickle installed, of any minor version; with pandas too,
the cells with frames run as well, whatever its release. Exits 1 when an output differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gridx.errors import CaptureError
from gridx.ship.capture import capture

from ..unit.gridx.ship.other_python_cases import CASES, REFUSED, OtherPythonCase, run_here

_ROOT: Final = Path(__file__).parents[2]
_PANDAS: Final = [
    OtherPythonCase(
        "frames",
        [
            "import numpy as np\nimport pandas as pd",
            "n = 20_000\nt = pd.date_range('2020', periods=n, freq='h', tz='Europe/Berlin')",
            "df = pd.DataFrame({'i': np.arange(n), 'f': np.arange(n) / 3, 's': ['a', 'b'] * (n // 2),"
            " 'o': [None, 'x'] * (n // 2), 't': t, 'm': [1, 'x'] * (n // 2),"
            " 'c': pd.Categorical(['u', 'v'] * (n // 2)), 'd': t.tz_localize(None)})",
            "by = df.set_index(['s', 'i'])\nseries = df['s']\nwide = pd.DataFrame(np.eye(3))",
        ],
        "print(df.i.sum(), round(df.f.sum(), 3), df.s.value_counts().to_dict(), len(df.dropna()))\n"
        "print(df.t.iloc[-1], df.t.dt.tz, df.c.cat.categories.tolist(), df.m.iloc[1], df.d.max())\n"
        "print(list(df.columns), df.loc[3, 's'], series.str.upper().iloc[0], wide.sum().tolist())\n"
        "print((df.s + '!').iloc[1], df.groupby('c', observed=True).i.sum().to_dict())\n"
        "df.loc[0, 'i'] = 5\nprint(df.i.iloc[0], df.index[-1], by.loc[('a', 0), 'f'])",
    )
]

_THERE: Final = """
import contextlib, importlib.util as u, io, json, sys, types
for name, file in (("gridx", None), ("gridx.ship", None)):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = []
for name in ("restore", "restore_pandas"):
    spec = u.spec_from_file_location(f"gridx.ship.{name}", f"{sys.argv[1]}/gridx/ship/{name}.py")
    module = sys.modules[spec.name] = u.module_from_spec(spec)
    spec.loader.exec_module(module)
main = sys.modules["__main__"] = types.ModuleType("__main__")
main.__dict__["__builtins__"] = __builtins__
folder = sys.argv[2]
out, error = io.StringIO(), None
try:
    sys.modules["gridx.ship.restore"].restore(
        open(f"{folder}/payload", "rb").read(), main.__dict__, folder
    )
    with contextlib.redirect_stdout(out):
        exec(compile(open(f"{folder}/cell").read(), "<cell>", "exec"), main.__dict__)
except BaseException as exc:
    error = f"{type(exc).__name__}: {exc}"
print(json.dumps({"out": out.getvalue(), "error": error}))
"""


def main(pythons: Sequence[str]) -> int:
    """Run all cases against each interpreter; return how many differ, at most 1."""
    failures = 0
    for python in pythons:
        probe = "import sys; print('%d.%d' % sys.version_info[:2])"
        version = _ask(python, probe)
        pandas = _ask(python, "import pandas; print(pandas.__version__)")
        print(f"{sys.version.split()[0]} to {python} ({version}, pandas {pandas or 'absent'})")
        has_both = bool(pandas) and bool(_ask(sys.executable, "import pandas; print(1)"))
        for case in [*CASES, *REFUSED, *(_PANDAS if has_both else ())]:
            problem = _difference(case, python, version)
            failures += bool(problem)
            print(
                f"  {'FAIL' if problem else 'ok  '} {case.name}{': ' + problem if problem else ''}"
            )
    return min(failures, 1)


def _ask(python: str, program: str) -> str:
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _difference(case: OtherPythonCase, python: str, version: str) -> str:
    notebook = sys.modules["__main__"] = types.ModuleType("__main__")
    namespace: dict[str, Any] = vars(notebook)
    namespace["__builtins__"] = __builtins__
    for cell in case.cells:
        run_here(cell, namespace)
    try:
        captured = capture(case.cell, namespace, target_python=version, sources=case.cells)
    except CaptureError as exc:
        return "" if case.refusal and case.refusal in exc.message else f"refused: {exc.message}"
    if case.refusal and captured.has_code is False:
        return "was not refused"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "payload").write_bytes(captured.payload)
        (Path(folder) / "cell").write_text(case.cell)
        done = subprocess.run(
            [python, "-c", _THERE, str(_ROOT), folder],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    if done.returncode:
        return done.stderr[-300:]
    answer = json.loads(done.stdout.splitlines()[-1])
    here = run_here(case.cell, namespace)
    if answer == {"out": here, "error": None}:
        return ""
    return f"{answer['error'] or answer['out']!r} instead of {here!r}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
