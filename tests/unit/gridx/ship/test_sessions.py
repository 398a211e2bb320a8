"""A session is sent only what has changed, and keeps the identity of what has not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridx.ship.capture import Captured, capture
from gridx.ship.fingerprint import Fingerprint, fingerprints

from ..fresh_process import KeptProcess


class _Session:
    """A notebook and the process of its session, in which each cell runs after it was sent."""

    def __init__(self, notebook: dict[str, Any], folder: Path, process: KeptProcess) -> None:
        self.notebook = notebook
        self.known: dict[str, Fingerprint] = {}
        self.out = ""
        self._folder = folder
        self._process = process

    def here(self, source: str) -> None:
        exec(compile(source, "<notebook>", "exec", dont_inherit=True), self.notebook)

    def run(self, cell: str, **options: Any) -> Captured:
        captured = capture(cell, self.notebook, known=self.known, with_blobs=True, **options)
        for blob in captured.blobs:
            (self._folder / blob.ref.digest).write_bytes(blob.data)
        self.out = self._process.run(cell, captured.payload, self._folder).strip()
        self.known.update(captured.fingerprints)
        return captured


@pytest.fixture
def session(notebook: dict[str, Any], tmp_path: Path) -> Iterator[_Session]:
    process = KeptProcess()
    yield _Session(notebook, tmp_path, process)
    process.close()


def test_the_first_cell_is_sent_all_and_the_next_only_what_changed(session: _Session) -> None:
    session.here("import math\na = [1]\nb = {'k': 2}\ndef f(): return a[0] + b['k'] + math.pi")
    first = session.run("x = f()\nkept = a")
    assert set(first.names) == {"a", "b", "f", "math"}
    assert first.unchanged == frozenset()
    session.here("b['k'] = 5")
    second = session.run("y = f()\nprint(y - x, a is kept)")
    assert set(second.names) == {"b"}
    assert second.unchanged == {"a", "f", "math"}
    assert session.out == "3.0 True"
    assert second.why["a"] == "read by f()"
    third = session.run("z = f()")
    assert not third.names
    assert len(third.payload) < 300


def test_without_a_session_nothing_is_compared(notebook: dict[str, Any]) -> None:
    notebook["a"] = [1]
    captured = capture("a", notebook)
    assert captured.fingerprints == {}
    assert captured.unchanged == frozenset()


def test_the_unchanged_are_watched_for_changes_too(session: _Session) -> None:
    session.here("a = [1]")
    session.run("a")
    captured = session.run("a.append(2)")
    assert captured.inputs == {"a"}
    assert captured.expected == {"a"}


@pytest.mark.parametrize("change", ["a.append(3)", "b.append(3)", "a[:] = [9]"])
def test_names_of_one_object_travel_together_or_not_at_all(session: _Session, change: str) -> None:
    session.here("a = [1]\nb = a\nc = [[0]]\nrow = c[0]\nother = [1]")
    session.run("a, b, c, row, other")
    session.here(change)
    captured = session.run("print(a is b, a)")
    assert set(captured.names) == {"a", "b"}
    assert captured.why["b"] in (
        "read by the cell",
        "shares an object with a name that has changed",
    )
    assert session.out == f"True {session.notebook['a']}"
    session.here("row.append(1)")
    later = session.run("print(c[0] is row, c)")
    assert set(later.names) == {"c", "row"}
    assert session.out == "True [[0, 1]]"


def test_other_names_for_a_part_of_what_a_cell_reads_travel_with_it(session: _Session) -> None:
    session.here("shared = {'n': 1}\nfirst = {'s': shared}\nsecond = {'s': shared}")
    sent = session.run("first['s']['n'] = 2")
    assert sent.inputs == sent.expected == set(sent.names) == {"first", "shared"}
    assert sent.why["shared"] == "shares an object with first"
    again = session.run("first")
    assert again.inputs == again.unchanged == {"first", "shared"}
    session.here("shared['n'] = 5")
    later = session.run("print(first['s'] is shared, first)")
    assert set(later.names) == {"first", "shared"}
    assert session.out == "True {'s': {'n': 5}}"


def test_a_dict_of_numbers_under_two_names_stays_one_object(session: _Session) -> None:
    session.here("a = {'n': 1}\nb = a")
    session.run("a, b")
    session.here("b['n'] = 2\nc = 1")
    session.run("b")
    session.run("print(a is b, a)")
    assert session.out == "True {'n': 2}"


def test_a_name_the_cell_does_not_read_travels_when_it_shares_what_changed(
    session: _Session,
) -> None:
    session.here("a = [1]\nb = {'x': a}")
    session.run("a, b")
    session.here("a.append(2)")
    captured = session.run("a")
    assert set(captured.names) == {"a", "b"}
    assert captured.why["b"] == "shares an object with a name that has changed"
    session.run("print(b['x'] is a)")
    assert session.out == "True"


def test_values_that_are_equal_and_share_nothing_stay_apart(session: _Session) -> None:
    session.here("import numpy as np\na = np.zeros(3)\nb = np.zeros(3)\nn = 1\nm = 1\ns = 'x'")
    session.run("a, b, n, m, s")
    session.here("a[0] = 1; n = 2")
    assert set(session.run("a, b, n, m, s").names) == {"a", "n"}


def test_views_of_one_array_travel_together(session: _Session) -> None:
    session.here("import numpy as np\na = np.zeros(6)\nv = a[::2]")
    session.run("a, v")
    session.here("a[0] = 1")
    assert set(session.run("a").names) == {"a", "v"}


def test_a_large_array_that_has_not_changed_is_not_sent(session: _Session) -> None:
    session.notebook["a"] = np.arange(2_000_000)
    assert session.run("x = a.sum()").size_bytes > 16_000_000
    assert session.run("y = a.sum()").size_bytes < 1_000
    session.notebook["a"][5] = 0
    assert session.run("print(a.sum())").names.keys() == {"a"}
    assert session.out == str(session.notebook["a"].sum())


def test_a_class_that_was_not_changed_is_the_same_class_for_new_instances(
    session: _Session,
) -> None:
    session.here("class P:\n    def __init__(self, x): self.x = x\np = P(1)")
    session.run("p, P")
    session.here("p = P(2)")
    captured = session.run("print(type(p) is P, p.x)")
    assert set(captured.names) == {"p"}
    assert session.out == "True 2"


def test_a_function_that_was_defined_again_travels_again(session: _Session) -> None:
    session.here("k = 1\ndef f(): return k")
    session.run("x = f()")
    session.here("def f(): return k * 10")
    captured = session.run("print(f())")
    assert set(captured.names) == {"f"}
    assert session.out == "10"


def test_closures_that_share_a_variable_travel_together(session: _Session) -> None:
    session.here(
        "def make():\n    n = 0\n    def inc():\n        nonlocal n\n        n += 1\n"
        "    def get(): return n\n    return inc, get\ninc, get = make()"
    )
    session.run("inc(); get()")
    session.here("inc()")
    captured = session.run("inc(); print(get())")
    assert {"inc", "get"} <= captured.names.keys()
    assert session.out == "2"


def test_what_a_hidden_function_reads_is_part_of_what_is_compared(session: _Session) -> None:
    session.here("import numpy as np\nOFFSET = 1\nv = np.vectorize(lambda x: x + OFFSET)")
    session.run("print(v(1))")
    assert session.out == "2"
    session.here("OFFSET = 10")
    session.run("print(v(1))")
    assert session.out == "11"


def test_what_came_home_need_not_be_sent_back(session: _Session) -> None:
    session.run("made = [1, 2]")
    session.notebook["made"] = [1, 2]  # as a result puts it there
    session.known.update(fingerprints(session.notebook, ["made", "gone"]))
    assert "gone" not in session.known
    captured = session.run("made.append(3)")
    assert not captured.names
    session.notebook["made"] = [5]
    assert session.run("made").names.keys() == {"made"}


def test_names_that_only_the_session_has_are_not_missing(session: _Session) -> None:
    session.run("model = object()")
    captured = session.run("model\nlambda: nowhere", remote_names={"model"})
    assert captured.missing == {"nowhere"}
    needed = session.run("1", remote_names={"model"}, needs=["model"])
    assert not needed.names


def test_a_value_that_cannot_travel_is_still_refused_by_name(session: _Session) -> None:
    from gridx.errors import CaptureError

    session.here("import threading\nlock = threading.Lock()")
    with pytest.raises(CaptureError, match="'lock'"):
        session.run("lock")


def test_a_long_list_is_compared_without_looking_at_each_of_its_parts(session: _Session) -> None:
    session.notebook["rows"] = [{"i": i} for i in range(20_000)]
    session.run("rows")
    assert len(session.known["rows"].objects) <= 5_000
    assert not session.run("rows").names


def test_a_module_beside_the_notebook_that_was_edited_is_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "edited_helper.py"
    file.write_text("def twice(x): return 2 * x\n")
    module = importlib.import_module("edited_helper")
    monkeypatch.setitem(sys.modules, "edited_helper", module)
    notebook = {"helper": module, "twice": module.twice}
    first = capture("twice(helper.x)", notebook, known={})
    again = capture("twice(helper.x)", notebook, known=first.fingerprints)
    assert (again.unchanged, again.files) == ({"helper", "twice"}, ())
    file.write_text("def twice(x): return 300 * x\n")
    importlib.reload(module)
    notebook["twice"] = module.twice
    edited = capture("twice(helper.x)", notebook, known=first.fingerprints)
    assert edited.unchanged == frozenset()
    assert [spec.data for spec in edited.files] == [file.read_bytes()]
