"""Runs cloudpickle's own test-suite with our pickler as the pickler under test.

    python -m tests.conformance.cloudpickle_suite [--tests FOLDER]

The suite is that of the installed release: FOLDER is the ``tests`` of a checkout; without it the
tag is fetched from the project's repository (the archives of the package index bring no tests).
Each test runs with stock cloudpickle first:
what fails there says nothing about us. Exits 1 when a test differs for no reason given here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

_REPOSITORY: Final = "https://github.com/cloudpipe/cloudpickle"
_FILES: Final = ("cloudpickle_test.py", "cloudpickle_file_test.py")

# Tests that end otherwise with our pickler, and why that is meant.
_ONE_NAMESPACE: Final = (
    "functions of the notebook share the sandbox's namespace, so that they and the cell see one "
    "state; a sandbox is new for each cell"
)
EXPECTED: Final[dict[str, str]] = {
    "test_interactively_defined_global_variable": _ONE_NAMESPACE,
    "test_interactive_remote_function_calls_no_side_effect": _ONE_NAMESPACE,
}

# Loaded by each interpreter of the suite, because its folder is on PYTHONPATH: what a container
# is to a payload, the process itself is here.
_PATCH: Final = """
import os, sys
sys.path.append(os.path.join(os.path.dirname(__file__), "tests", "cloudpickle_testpkg"))
if os.environ.get("GRIDX_UNDER_TEST"):
    import cloudpickle
    from cloudpickle import cloudpickle as internals
    from gridx.ship import restore
    from gridx.ship.pickler import Shipper

    def target_namespace():
        return vars(sys.modules["__main__"])

    target_namespace.__module__, target_namespace.__qualname__ = restore.__name__, "target_namespace"
    restore.target_namespace = target_namespace

    from gridx.ship import pickler

    class InStream:
        raws = ()

        def __init__(self, digests):
            self.keep = self.callback or (lambda buffer: True)

    class Pickler(Shipper):
        def __init__(self, file, protocol=None, buffer_callback=None):
            self._file, self._written = file, 0
            InStream.callback = buffer_callback and staticmethod(buffer_callback)
            pickler._Buffers = InStream
            super().__init__(vars(sys.modules["__main__"]))

        def dump(self, value):
            super().dump(value)
            stream, _ = self.dumped()
            self._file.write(stream[self._written :])
            self._written = len(stream)

    def dump(obj, file, protocol=None, buffer_callback=None):
        Pickler(file, protocol, buffer_callback).dump(obj)

    def dumps(obj, protocol=None, buffer_callback=None):
        import io
        with io.BytesIO() as file:
            dump(obj, file, protocol, buffer_callback)
            return file.getvalue()

    for module in (cloudpickle, internals):
        module.Pickler = module.CloudPickler = Pickler
        module.dump, module.dumps = dump, dumps
"""


def main() -> int:
    """Run the suite twice and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tests", type=Path, help="the folder `tests` of a checkout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gridx-conformance-") as folder:
        root = Path(folder)
        origin = _lay_out(root, options.tests)
        (root / "sitecustomize.py").write_text(_PATCH)
        stock, ours = _run(root, under_test=False), _run(root, under_test=True)
    return _report(origin, stock, ours)


def _lay_out(root: Path, tests: Path | None) -> str:
    version = importlib.metadata.version("cloudpickle")
    if tests is not None:
        shutil.copytree(tests, root / "tests")
        return str(tests)
    checkout = root / "checkout"
    clone = ["git", "clone", "-q", "--depth", "1", "--branch", f"v{version}", _REPOSITORY]
    done = subprocess.run(
        [*clone, str(checkout)],
        capture_output=True,
        check=False,
        env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        timeout=300,
    )
    if done.returncode:
        sys.exit(
            f"The tests of cloudpickle {version} could not be fetched from {_REPOSITORY}. Check its "
            f"tag v{version} out where you can, and name the folder: "
            f"make conformance CLOUDPICKLE_TESTS=…/tests"
        )
    shutil.copytree(checkout / "tests", root / "tests")
    return f"the tag v{version} of {_REPOSITORY}"


def _run(root: Path, *, under_test: bool) -> dict[str, str]:
    """Return each test's outcome: "passed", "failed: …" or "skipped"."""
    report = root / f"report-{under_test}.xml"
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"GRIDX_UNDER_TEST": "1" if under_test else ""}
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-c", os.devnull,
         "--rootdir", str(root), f"--junitxml={report}", *(f"tests/{name}" for name in _FILES)],
        cwd=root, env=environment, check=False, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, timeout=1_200,
    )  # fmt: skip
    outcomes = {}
    tree = ElementTree.parse(report)  # noqa: S314  # pytest has just written it
    for case in tree.getroot().iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}.{case.get('name')}"
        outcomes[name] = _outcome(case)
    return outcomes


def _outcome(case: ElementTree.Element) -> str:
    for child in case:
        if child.tag in ("failure", "error"):
            return f"failed: {(child.get('message') or '').splitlines()[0][:160]}"
        if child.tag == "skipped":
            return "skipped"
    return "passed"


def _report(origin: str, stock: dict[str, str], ours: dict[str, str]) -> int:
    print(f"cloudpickle {importlib.metadata.version('cloudpickle')}, its tests from {origin}")
    for name, outcomes in (("stock", stock), ("ours", ours)):
        passed = sum(outcome == "passed" for outcome in outcomes.values())
        skipped = sum(outcome == "skipped" for outcome in outcomes.values())
        print(f"{name:>6}: {passed} passed, {len(outcomes) - passed - skipped} failed, "
              f"{skipped} skipped")  # fmt: skip
    unexpected = 0
    for name in sorted(stock.keys() | ours.keys()):
        before, now = stock.get(name, "absent"), ours.get(name, "absent")
        if (before == "passed") == (now == "passed"):
            continue
        reason = EXPECTED.get(name.rpartition(".")[2])
        unexpected += reason is None and now != "passed"
        print(f"  {'meant' if reason else 'better' if now == 'passed' else 'DIFFERS'} {name}")
        print(f"        {reason or now}")
    for name, outcome in ours.items():
        if outcome.startswith("failed") and stock.get(name, "").startswith("failed"):
            print(f"  fails with stock cloudpickle too: {name}")
    return int(unexpected > 0)


if __name__ == "__main__":
    sys.exit(main())
