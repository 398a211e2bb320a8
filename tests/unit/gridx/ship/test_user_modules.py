"""Modules beside the notebook travel as files, as they are on disk."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import IPython.core.inputtransformer2  # noqa: F401  # magics are understood where it is loaded
import pytest

from gridx.errors import CaptureError
from gridx.ship.capture import Captured, capture
from gridx.ship.user_modules import collect, is_user_module

from ..fresh_process import FreshProcesses


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of the notebook, on ``sys.path``; what is imported from it is forgotten."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    importlib.invalidate_caches()


def _here(source: str, notebook: dict[str, Any]) -> None:
    exec(compile(source, "<notebook>", "exec", dont_inherit=True), notebook)


def _run(cell: str, captured: Captured, fresh: FreshProcesses, **options: Any) -> str:
    answer = fresh.run(
        cell, captured.payload, blobs=captured.blobs, files=captured.files, **options
    )
    assert answer["error"] is None
    return str(answer["out"])


def test_a_single_file_travels_and_is_imported_there(
    notebook: dict[str, Any], beside: Path, fresh: FreshProcesses
) -> None:
    _write(beside, {"my_helpers.py": "FACTOR = 3\ndef triple(x):\n    return x * FACTOR\n"})
    _here("import my_helpers\nfrom my_helpers import triple", notebook)
    cell = (
        "import inspect\n"
        "print(my_helpers.triple(2), triple(3), triple is my_helpers.triple)\n"
        "print(inspect.getsource(triple).splitlines()[0])"
    )
    captured = capture(cell, notebook)
    assert [(file.path, file.kind) for file in captured.files] == [("my_helpers.py", "module")]
    assert captured.user_modules == {"my_helpers"}
    assert not captured.warnings
    assert _run(cell, captured, fresh) == "6 9 True\ndef triple(x):\n"


def test_a_package_travels_whole_with_its_resources_and_relative_imports(
    notebook: dict[str, Any], beside: Path, fresh: FreshProcesses
) -> None:
    _write(
        beside,
        {
            "pkg/__init__.py": "",
            "pkg/core.py": "from .inner.deep import value\nfrom importlib import resources\n"
            "def text(): return resources.files('pkg').joinpath('data/a.txt').read_text()\n",
            "pkg/inner/__init__.py": "",
            "pkg/inner/deep.py": "from ..base import BASE\nvalue = BASE + 1\n",
            "pkg/base.py": "BASE = 41\n",
            "pkg/data/a.txt": "resource",
            "pkg/__pycache__/x.pyc": "no",
            "pkg/.git/config": "no",
            "pkg/env/pyvenv.cfg": "no",
            "pkg/env/lib/x.py": "no",
        },
    )
    _here("import pkg.core", notebook)
    cell = "print(pkg.core.value, pkg.core.text(), pkg.inner.deep.__package__)"
    captured = capture(cell, notebook)
    assert {file.path for file in captured.files} == {
        "pkg/__init__.py", "pkg/core.py", "pkg/inner/__init__.py", "pkg/inner/deep.py",
        "pkg/base.py", "pkg/data/a.txt",
    }  # fmt: skip
    assert _run(cell, captured, fresh) == "42 resource pkg.inner\n"


def test_a_module_that_only_the_cell_imports_travels_with_what_it_imports_itself(
    notebook: dict[str, Any], beside: Path, fresh: FreshProcesses
) -> None:
    _write(
        beside,
        {
            "outer.py": "import json\ntry:\n    import extra\nexcept ImportError:\n    extra = None\n"
            "def f():\n    import lazy\n    return lazy.V + extra.V\n",
            "extra.py": "V = 1",
            "lazy.py": "V = 2",
            "unused.py": "V = 3",
        },
    )
    cell = "import outer\nprint(outer.f())"
    captured = capture(cell, notebook)
    assert {file.path for file in captured.files} == {"outer.py", "extra.py", "lazy.py"}
    assert captured.imports == {"outer", "json"}
    assert {"extra", "lazy"} <= captured.optional_imports
    assert _run(cell, captured, fresh) == "3\n"
    assert "outer" not in sys.modules  # capture looks, and imports nothing


def test_a_package_that_a_user_module_surely_imports_is_needed_too(
    notebook: dict[str, Any], beside: Path
) -> None:
    _write(
        beside,
        {
            "first.py": "import second",
            "second/__init__.py": "import cv2",
            "second/other.py": "import torch",
            "third.py": "import keras",
        },
    )
    captured = capture("import first\ndef f():\n    import third", notebook)
    assert captured.imports == {"first", "second", "cv2"}
    assert captured.optional_imports == {"torch", "third", "keras"}


def test_an_instance_of_a_class_of_a_user_module_is_one_of_it_there(
    notebook: dict[str, Any], beside: Path, fresh: FreshProcesses
) -> None:
    _write(beside, {"shapes.py": "class P:\n    def __init__(self, x): self.x = x\n"})
    _here("from shapes import P\np = P(3)\ndef f(): return P", notebook)
    cell = "import shapes\nprint(isinstance(p, shapes.P), p.x, f() is shapes.P)"
    assert _run(cell, capture(cell, notebook), fresh) == "True 3 True\n"


def test_a_namespace_package_travels_too(
    notebook: dict[str, Any], beside: Path, fresh: FreshProcesses
) -> None:
    _write(beside, {"space/one.py": "V = 7"})
    cell = "from space.one import V\nprint(V)"
    assert _run(cell, capture(cell, notebook), fresh) == "7\n"


@pytest.mark.parametrize("edit", ["a function", "a constant", "a method"])
def test_an_edited_file_travels_as_it_is_on_disk_and_the_user_is_told(
    notebook: dict[str, Any], beside: Path, fresh: FreshProcesses, edit: str
) -> None:
    text = "V = 1\ndef f():\n    return V\nclass C:\n    def m(self):\n        return 1\n"
    _write(beside, {"edited.py": text})
    _here("import edited", notebook)
    cell = "print(edited.f(), edited.C().m())"
    for _ in range(30):  # until the interpreter has specialised the code
        assert not capture(cell, notebook).warnings
        _here("edited.f(); edited.C().m()", notebook)
    changes = {
        "a function": ("return V", "return V + 1"),
        "a constant": ("V = 1\n", "V = 22\n"),
        "a method": ("return 1", "return 9"),
    }
    _write(beside, {"edited.py": text.replace(*changes[edit])})
    captured = capture(cell, notebook)
    assert any("edited.py has changed since" in note for note in captured.warnings)
    expected = {"a function": "2 1\n", "a constant": "22 1\n", "a method": "1 9\n"}
    assert _run(cell, captured, fresh) == expected[edit]


def test_a_module_never_travels_both_by_value_and_as_files(
    notebook: dict[str, Any], beside: Path, fresh: FreshProcesses
) -> None:
    _write(beside, {"valued.py": "class C: pass\ndef f(): return C\n"})
    _here("import valued\nc = valued.C()", notebook)
    module = notebook["valued"]
    cloudpickle.register_pickle_by_value(module)
    try:
        cell = "print(type(c) is valued.C, valued.f() is valued.C)"
        captured = capture(cell, notebook)
        assert _run(cell, captured, fresh) == "True True\n"
        assert "valued" in cloudpickle.list_registry_pickle_by_value()
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_large_files_and_secrets_of_a_package_stay_and_are_named(
    notebook: dict[str, Any], beside: Path
) -> None:
    _write(beside, {"heavy/__init__.py": "", "heavy/api_token.txt": "s", "heavy/id.pem": "s"})
    (beside / "heavy/model.bin").write_bytes(bytes(9 << 20))
    captured = capture("import heavy", notebook)
    assert [file.path for file in captured.files] == ["heavy/__init__.py"]
    large, secret = captured.warnings
    assert "heavy/model.bin (9 MiB)" in large
    assert "heavy/api_token.txt, heavy/id.pem" in secret


def test_a_package_that_is_too_large_is_refused_by_name(beside: Path) -> None:
    _write(beside, {"vast/__init__.py": ""})
    for number in range(9):
        (beside / f"vast/{number}.bin").write_bytes(bytes(8 << 20))
    with pytest.raises(CaptureError, match="'vast' beside the notebook is too large"):
        collect(["vast"])


def test_a_module_whose_file_is_gone_is_refused(notebook: dict[str, Any], beside: Path) -> None:
    _write(beside, {"ghost.py": "V = 1"})
    _here("import ghost", notebook)
    (beside / "ghost.py").unlink()
    with pytest.raises(CaptureError, match=r"ghost\.py is gone"):
        capture("ghost.V", notebook)


def test_installed_modules_the_standard_library_and_ours_are_nobodys_own() -> None:
    for name in ("numpy", "json", "xml.etree", "gridx", "gridx.ship", "sys", "no_such_module"):
        assert not is_user_module(name)
    assert not collect(["numpy", "os.path", "pandas.core", "no_such_module"]).files


def test_large_sets_of_files_travel_as_blobs(
    notebook: dict[str, Any], beside: Path, fresh: FreshProcesses
) -> None:
    text = "".join(f"V{i} = {i}\n" for i in range(40_000))
    _write(beside, {"long.py": text, "short.py": "import long\n"})
    cell = "import short\nprint(short.long.V39999)"
    captured = capture(cell, notebook, with_blobs=True)
    by_path = {file.path: file for file in captured.files}
    assert by_path["short.py"].data
    assert not by_path["long.py"].data
    assert set(by_path["long.py"].blobs) <= set(captured.blob_refs)
    assert _run(cell, captured, fresh) == "39999\n"
    assert not any(file.blobs for file in capture(cell, notebook).files)


def test_a_file_that_is_run_travels_and_what_it_binds_comes_home(
    notebook: dict[str, Any], beside: Path, fresh: FreshProcesses
) -> None:
    _write(beside, {"script.py": "import side\nmade = side.V + 1\n", "side.py": "V = 4"})
    cell = "%run script.py\nprint(made)"
    captured = capture(cell, notebook)
    assert {(file.path, file.kind) for file in captured.files} == {
        ("script.py", "work"),
        ("side.py", "module"),
    }
    assert "made" in captured.expected
    assert _run(cell, captured, fresh, ipython=True).endswith("5\n")
    outside = capture("%run ../other.py", notebook)
    assert not outside.files
    assert any("../other.py stays here" in note for note in outside.warnings)
