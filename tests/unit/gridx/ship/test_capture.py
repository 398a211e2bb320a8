from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gridx.errors import CaptureError
from gridx.ship.capture import Captured, capture
from gridx.ship.refusal import NameWithheld, StaysHere, UnknownNeed
from gridx.ship.restore import HEADER, RestoreError, restore
from gridx.ship.withheld import is_secret_name

from ..fresh_process import FreshProcesses


def _here(source: str, notebook: dict[str, Any]) -> None:
    exec(compile(source, "<notebook>", "exec", dont_inherit=True), notebook)


def _restored(captured: Captured) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__builtins__": __builtins__}
    assert restore(captured.payload, namespace) == set(captured.names)
    return namespace


# ---------------------------------------------------------------- secrets


@pytest.mark.parametrize(
    "name",
    ["api_key", "API_KEY", "apiKey", "APIKey", "token", "hf_token", "authToken", "SECRET",
     "client_secret", "password", "db_password", "key", "my_key_2", "access_token"],
)  # fmt: skip
def test_a_name_with_a_word_for_a_secret_is_a_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["keys", "keyword", "monkey", "tokens", "tokenizer", "secretary", "keyboard", "df"]
)
def test_a_name_that_only_contains_such_letters_is_none(name: str) -> None:
    assert not is_secret_name(name)


def test_a_secret_that_the_cell_needs_is_refused_with_the_way_to_send_it(
    notebook: dict[str, Any],
) -> None:
    _here("api_key = 'sk-123'\nx = 1", notebook)
    with pytest.raises(NameWithheld) as refusal:
        capture("print(api_key, x)", notebook)
    assert refusal.value.code == "withheld"
    assert "--needs api_key" in refusal.value.hint
    report = capture("print(api_key, x)", notebook, report_only=True)
    assert report.withheld == {"api_key"}
    assert b"sk-123" not in report.payload
    sent = capture("print(api_key, x)", notebook, needs=["api_key"])
    assert _restored(sent)["api_key"] == "sk-123"


def test_a_secret_that_a_function_reads_is_withheld_too(notebook: dict[str, Any]) -> None:
    _here("token = 't-456'\ndef call(): return token", notebook)
    with pytest.raises(NameWithheld, match=r"read by call\(\)"):
        capture("call()", notebook)


def test_a_secret_does_not_ride_along_inside_a_function_of_a_library_object(
    notebook: dict[str, Any],
) -> None:
    _here(
        "import numpy as np\nsecret = 's-789'\nvf = np.vectorize(lambda x: (x, secret))", notebook
    )
    captured = capture("vf([1])", notebook)
    assert b"s-789" not in captured.payload
    assert "secret" in captured.withheld


def test_a_secret_in_a_string_or_bound_by_the_cell_is_no_need(notebook: dict[str, Any]) -> None:
    _here("password = 'p'", notebook)
    captured = capture("x = 'password'\npassword = 'new'\nprint(password)", notebook)
    assert "password" not in captured.names


def test_code_with_such_a_name_is_no_secret(notebook: dict[str, Any]) -> None:
    _here("def make_key(): return 1\nimport secrets as token", notebook)
    assert {"make_key", "token"} <= capture("make_key(); token", notebook).names.keys()


def test_the_environment_is_never_sent_unasked(
    notebook: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIDX_TEST_SECRET", "env-value")
    _here("import os\nenv = os.environ\nbox = {'e': os.environ}", notebook)
    assert b"env-value" not in capture("os.environ.get('HOME')", notebook).payload
    with pytest.raises(NameWithheld):
        capture("env['HOME']", notebook)
    with pytest.raises(CaptureError, match=r"box\['e'\]"):
        capture("box", notebook)
    sent = _restored(capture("env['HOME']", notebook, needs=["env"]))
    assert sent["env"]["GRIDX_TEST_SECRET"] == "env-value"
    assert sent["env"] is not os.environ


@pytest.mark.parametrize(
    "name",
    ["Credentials", "GoogleCredential", "SecretStr", "RSAPrivateKey", "AccessToken", "Password"],
)
def test_an_object_of_credentials_is_sent_only_when_it_is_named(
    notebook: dict[str, Any], name: str
) -> None:
    _here(f"class {name}:\n    v = 's-321'\nlogin = {name}()\nbox = {{'in': [login]}}", notebook)
    with pytest.raises(NameWithheld, match="'login' looks like a secret"):
        capture("login", notebook)
    with pytest.raises(CaptureError, match=r"box\['in'\]\[0\]") as refusal:
        capture("box", notebook)
    assert "is a secret" in refusal.value.message
    assert "under a name of its own" in refusal.value.hint
    assert "login" in capture("login", notebook, needs=["login"]).names
    assert "box" in capture("box", notebook, needs=["box"]).names


@pytest.mark.parametrize("name", ["Token", "KeyedVectors", "Tokenizer", "PrimaryKey", "Secretary"])
def test_a_class_that_only_sounds_alike_is_none(notebook: dict[str, Any], name: str) -> None:
    _here(f"class {name}: pass\nx = {name}()", notebook)
    assert "x" in capture("x", notebook).names


# ---------------------------------------------------------------- options


def test_a_needed_name_that_does_not_exist_is_refused(notebook: dict[str, Any]) -> None:
    with pytest.raises(UnknownNeed, match="nope"):
        capture("1", notebook, needs=["nope"])


def test_a_name_can_be_left_out_although_the_cell_reads_it(notebook: dict[str, Any]) -> None:
    _here("a = 1\nb = 2\ndef f(): return a", notebook)
    captured = capture("f() + b", notebook, without=["a"])
    assert set(captured.names) == {"f", "b"}
    assert "a" not in _restored(captured)


def test_a_dynamic_cell_is_flagged_and_takes_what_is_named(
    notebook: dict[str, Any], fresh: FreshProcesses
) -> None:
    _here("q1 = 4", notebook)
    cell = "k = 'q' + str(1)\nprint(globals()[k])"
    assert capture(cell, notebook).dynamic == {"globals"}
    captured = capture(cell, notebook, needs=["q1"])
    assert fresh.run(cell, captured.payload)["out"] == "4\n"
    assert captured.why == {"q1": "asked for"}


def test_everything_takes_what_can_travel_and_says_what_cannot(notebook: dict[str, Any]) -> None:
    _here("a = 1\nimport threading, math\nlock = threading.Lock()\napi_key = 's'", notebook)
    captured = capture("pass", notebook, everything=True)
    assert {"a", "math", "huge_unrelated"} <= captured.names.keys()
    assert "lock" not in captured.names
    assert any(warning.startswith("lock stays here") for warning in captured.warnings)
    assert captured.withheld == {"api_key"}


def test_a_big_name_that_only_a_string_mentions_stays_and_is_listed(
    notebook: dict[str, Any],
) -> None:
    _here("big = bytearray(100_000)\nsmall = [1]", notebook)
    captured = capture("'big'; 'small'", notebook)
    assert set(captured.names) == {"small"}
    assert captured.left_out.keys() == {"big"}
    assert "big" in capture("'big'", notebook, soft_limit_bytes=10**6).names


def test_the_histories_of_the_shell_stay_but_one_value_of_them_travels(
    notebook: dict[str, Any],
) -> None:
    notebook.update(Out={3: 41, 4: "x"}, In=["", "a"], _oh={}, exit=object())
    captured = capture("Out[3] + 1", notebook)
    assert _restored(captured)["Out"] == {3: 41}
    assert captured.expected == set()
    assert not capture("In; _oh", notebook).names


def test_sizes_say_which_variables_are_the_large_ones(notebook: dict[str, Any]) -> None:
    notebook.update(a=np.zeros(1000), b=np.zeros(100_000), c=1)
    captured = capture("a; b; c", notebook)
    assert [name for name, _ in captured.largest(2)] == ["b", "a"]
    assert 800_000 <= captured.names["b"] <= 801_000
    assert captured.size_bytes >= 808_000


def test_expected_names_are_what_the_cell_and_its_functions_write_and_the_inputs(
    notebook: dict[str, Any],
) -> None:
    _here("n = 0\ntmp = 1\ndef inc():\n    global n, made\n    n += 1\n    made = n", notebook)
    captured = capture("inc()\ny = tmp\ndel tmp", notebook)
    assert captured.expected == {"n", "made", "y", "tmp"}
    assert captured.inputs == {"n", "tmp"}
    assert captured.deletes == {"tmp"}


def test_a_cell_that_is_not_python_is_a_syntax_error(notebook: dict[str, Any]) -> None:
    with pytest.raises(SyntaxError):
        capture("x = (", notebook)
    with pytest.raises(SyntaxError):
        capture("return 1", notebook)


def test_an_empty_cell_needs_nothing(notebook: dict[str, Any]) -> None:
    captured = capture("  \n", notebook)
    assert not captured.names
    assert _restored(captured).keys() == {"__builtins__"}


def test_why_says_for_each_name_why_it_travels_and_why_others_stay(
    notebook: dict[str, Any],
) -> None:
    _here(
        "import threading, numpy as np\na = 1\nb = 2\nsoft = 3\nbig = bytearray(10**6)\n"
        "left = 4\nasked = 5\nhidden = 6\npassword = 'p'\n"
        "def f(): return b\nv = np.vectorize(lambda x: x + hidden)\n"
        "def g(): return 'soft2'\nsoft2 = 7",
        notebook,
    )
    captured = capture(
        "a, f(), g(), v, left\n'soft'; 'big'; 'password'",
        notebook,
        needs=["asked"],
        without=["left"],
    )
    assert captured.why == {
        "a": "read by the cell",
        "f": "read by the cell",
        "g": "read by the cell",
        "v": "read by the cell",
        "b": "read by f()",
        "soft": "mentioned in a string",
        "soft2": "mentioned in a string of g()",
        "asked": "asked for",
        "hidden": "read by a function inside a value",
    }
    assert captured.left_out_why == {
        "big": "976.6 KiB, and only mentioned in a string",
        "password": "looks like a secret",
        "left": "left out by --without",
    }


@pytest.mark.parametrize(
    ("setup", "cell", "words"),
    [
        ("import numpy as np\na = np.zeros(6)\nv = a[::2]", "v[:] = 7; a", "a and v share memory"),
        ("import numpy as np\na = np.zeros(6)\nb = a", "b[:] = 7; a", ""),
        ("import numpy as np\na = np.zeros(6)\nb = a.copy()", "b[:] = 7; a", ""),
        ("s = {'x', 'y'}", "list(s)", "order of the set s"),
        ("", "import numpy as np\nnp.random.rand(3)", "numpy.random start anew"),
        ("", "import numpy as np\nnp.random.seed(1)\nnp.random.rand(3)", ""),
        ("", "import numpy as np\nnp.random.default_rng(1).random()", ""),
        ("", "import random\nrandom.shuffle([1])", "numbers of random start anew"),
        ("", "import random\nrandom.Random(3).random()", ""),
    ],
)
def test_declared_limits_are_noticed_where_a_look_can_tell(
    notebook: dict[str, Any], setup: str, cell: str, words: str
) -> None:
    _here(setup, notebook)
    limits = " ".join(capture(cell, notebook).limits)
    assert words in limits
    if not words:
        assert not limits


# ---------------------------------------------------------------- refusals


def test_a_refusal_names_the_attribute_that_is_the_cause(notebook: dict[str, Any]) -> None:
    _here(
        "import threading\nclass W:\n    def __init__(self):\n"
        "        self.cfg = {'a': 1, 'pool': [threading.Lock()]}\nw = W()\nok = 1",
        notebook,
    )
    with pytest.raises(CaptureError) as refusal:
        capture("w; ok", notebook)
    assert refusal.value.details == {"name": "w", "path": "w.cfg['pool'][0]"}
    assert "lock" in refusal.value.message
    assert "--without w" in refusal.value.hint


def test_a_refusal_finds_the_variable_of_a_closure(notebook: dict[str, Any]) -> None:
    _here(
        "import threading\ndef mk():\n    lock = threading.Lock()\n    def f(): return lock\n    return f\nf = mk()",
        notebook,
    )
    with pytest.raises(CaptureError, match="its variable lock"):
        capture("f()", notebook)


class _Record:
    """Belongs to its notebook, and holds what no message should name."""

    def __init__(self) -> None:
        self.inside = threading.Lock()

    def __reduce__(self) -> Any:
        raise StaysHere("it stays in this notebook")


def test_what_belongs_to_the_notebook_is_refused_without_its_inside(
    notebook: dict[str, Any],
) -> None:
    notebook["run"] = _Record()
    with pytest.raises(CaptureError) as refusal:
        capture("print(run)", notebook)
    assert refusal.value.message == "Variable 'run' cannot be sent: it stays in this notebook."
    assert refusal.value.hint == "Leave it out with --without run."


def test_a_large_open_file_is_refused_and_a_small_one_warned_about(
    notebook: dict[str, Any], tmp_path: Path
) -> None:
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_text("x" * 2_000_000)
    small.write_text("hello")
    with large.open() as a, small.open() as b:
        notebook.update(a=a, b=b)
        with pytest.raises(CaptureError, match="2,000,000 bytes"):
            capture("a.read()", notebook)
        captured = capture("b.read()", notebook)
    assert _restored(captured)["b"].read() == "hello"
    assert any("remaining text" in warning for warning in captured.warnings)


def test_nothing_is_in_the_payload_of_a_refused_report(notebook: dict[str, Any]) -> None:
    notebook.update(lock=threading.Lock(), ok=1)
    report = capture("lock; ok", notebook, report_only=True)
    assert report.payload == b""
    assert report.unpicklable["lock"].path == "lock"


# ---------------------------------------------------------------- modules


def test_the_modules_that_the_payload_needs_are_listed(notebook: dict[str, Any]) -> None:
    _here(
        "import numpy as np\nfrom decimal import Decimal\nd = Decimal(1)\na = np.ones(2)", notebook
    )
    captured = capture("import json, os.path\nd; a", notebook)
    assert {"numpy", "decimal"} <= {module.partition(".")[0] for module in captured.modules}
    assert captured.imports == {"json", "os.path"}


# ---------------------------------------------------------------- payload


def test_arrays_share_the_memory_of_a_writable_payload(notebook: dict[str, Any]) -> None:
    notebook.update(a=np.arange(10_000), frozen=b"x" * 10_000)
    payload = bytearray(capture("a; frozen", notebook).payload)
    namespace: dict[str, Any] = {}
    restore(payload, namespace)
    array = namespace["a"]
    array[0] = 77
    assert array.ctypes.data % 64 == np.frombuffer(payload, np.uint8).ctypes.data % 64
    assert np.shares_memory(array, np.frombuffer(payload, np.uint8))


def test_arrays_of_a_read_only_payload_can_be_written_too(notebook: dict[str, Any]) -> None:
    notebook.update(a=np.arange(10_000))
    _restored(capture("a", notebook))["a"][0] = 5


def test_an_array_that_was_read_only_stays_read_only(notebook: dict[str, Any]) -> None:
    array = np.arange(10_000)
    array.flags.writeable = False
    notebook.update(a=array)
    assert not _restored(capture("a", notebook))["a"].flags.writeable


def test_an_open_npz_archive_travels_as_its_arrays(
    notebook: dict[str, Any], tmp_path: Path
) -> None:
    np.savez(tmp_path / "z.npz", a=np.arange(3))
    with np.load(tmp_path / "z.npz") as archive:
        notebook["z"] = archive
        captured = capture("z['a']", notebook)
    assert _restored(captured)["z"]["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("cut", [0, 3, 15, 30, -1])
def test_a_payload_that_is_cut_off_is_refused(notebook: dict[str, Any], cut: int) -> None:
    notebook.update(a=np.arange(10_000), b=[1])
    payload = capture("a; b", notebook).payload
    with pytest.raises(RestoreError):
        restore(payload[:cut], {})


def test_a_payload_of_another_python_is_refused_with_both_versions(
    notebook: dict[str, Any],
) -> None:
    payload = bytearray(capture("1", notebook).payload)
    payload[5] += 1
    with pytest.raises(RestoreError, match="minor versions"):
        restore(payload, {})
    with pytest.raises(RestoreError, match="another release"):
        restore(b"nope" + bytes(HEADER.size), {})


def test_a_module_that_the_container_lacks_is_named(
    notebook: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import colorsys

    _here("import colorsys", notebook)
    captured = capture("colorsys", notebook)
    monkeypatch.setitem(sys.modules, "colorsys", None)
    with pytest.raises(RestoreError) as refusal:
        restore(captured.payload, {})
    assert refusal.value.missing_module == "colorsys"
    assert colorsys.ONE_THIRD


def test_restore_needs_nothing_but_cloudpickle(notebook: dict[str, Any], tmp_path: Path) -> None:
    import subprocess

    _here("def f(): return [x] * 3\nx = 'a'", notebook)
    (tmp_path / "payload").write_bytes(capture("f()", notebook).payload)
    root = Path(__file__).parents[4]
    program = (
        "import sys, importlib.util as u\n"
        f"spec = u.spec_from_file_location('anything', {str(root / 'gridx/ship/restore.py')!r})\n"
        "m = u.module_from_spec(spec); spec.loader.exec_module(m)\n"
        f"ns = sys.modules['__main__'].__dict__\n"
        f"m.restore(open({str(tmp_path / 'payload')!r}, 'rb').read(), ns)\n"
        "print(f(), any(n.startswith('gridx') or n == 'IPython' for n in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['a', 'a', 'a'] False\n"


def test_a_cloudpickle_without_our_hooks_is_refused_at_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import cloudpickle

    from gridx.ship import pickler

    monkeypatch.delattr(cloudpickle.Pickler, "_function_getnewargs")
    with pytest.raises(ImportError, match="_function_getnewargs"):
        pickler._check_hooks()
