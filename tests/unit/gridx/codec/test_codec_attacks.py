"""What a hostile worker may send: nothing of it runs, and nothing of it costs much."""

from __future__ import annotations

import builtins
import copy
import enum
import os
import pickle
import subprocess
import sys
import traceback
import weakref
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from gridx.codec import CodecError, Limits, Opaque, decode, encode, tags, user_classes
from gridx.codec.encode import Encoder
from gridx.codec.framing import join, scan
from gridx.codec.results import apply_result
from gridx.codec.tags import RESULT_MAGIC, VALUE_MAGIC
from gridx.errors import CaptureError
from gridx.remote_error import RemoteError, rebuild
from gridx.ship.capture import capture
from gridx.ship.refusal import StaysHere

from . import sample_values
from .sample_values import NAMESPACE, Colour, Point

_CLASSES = user_classes(NAMESPACE)


class _Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def _attack_pickles() -> list[bytes]:
    dotted = b"\x80\x04\x8c\x10pandas.io.common\x8c\x09os.system\x93\x8c\x0etouch /tmp/pwnd\x85R."
    modules = b"\x80\x04\x8c\x0bcollections\x8c\x0c_sys.modules\x93."
    return [
        pickle.dumps(_Runs(exec, "import builtins; builtins.GRIDX_PWNED = 1")),
        pickle.dumps(_Runs(os.system, "touch /tmp/gridx-pwned")),
        pickle.dumps(_Runs(np.genfromtxt, "/etc/passwd")),
        dotted,
        modules,
        b"cos\nsystem\n(S'true'\ntR.",
    ]


def _message(root: Any, blobs: list[bytes] | None = None) -> bytes:
    return join(VALUE_MAGIC, root, blobs or [])


@pytest.mark.parametrize("attack", _attack_pickles())
def test_an_attack_pickle_is_no_message(attack: bytes) -> None:
    for data in (attack, VALUE_MAGIC + attack, RESULT_MAGIC + attack):
        with pytest.raises(CodecError):
            decode(data)
        with pytest.raises(CodecError):
            apply_result(data, {}, expected={"x"}, cell_source="x = 1")
    assert not hasattr(builtins, "GRIDX_PWNED")


@pytest.mark.parametrize("attack", _attack_pickles())
def test_an_attack_pickle_inside_a_handle_stays_closed_however_it_is_looked_at(
    attack: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "loads", forbidden)
    monkeypatch.setattr(pickle, "Unpickler", forbidden)
    closed = decode(_message([tags.OPAQUE, "sklearn.Model", "\x1b[31mnice\u202e", attack]))
    assert isinstance(closed, Opaque)
    text = f"{closed!r} {closed}"
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert closed == closed
    assert {closed: 1}
    with pytest.raises(PermissionError):
        closed.unpickle()
    assert not hasattr(builtins, "GRIDX_PWNED")


def test_decoding_needs_no_code_that_could_open_a_pickle_or_a_file_format() -> None:
    program = (
        "import sys\n"
        "from gridx.codec import decode\n"
        "import pickle, marshal\n"
        "def no(*a, **k): raise AssertionError('opened')\n"
        "pickle.loads = pickle.load = pickle.Unpickler = marshal.loads = no\n"
        "import builtins; builtins.eval = builtins.exec = no\n"
        "print(decode(bytes.fromhex(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, encode([1, {"a": (2, b"x")}, 3.5] * 40).hex()],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[4],
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[1, {'a': (2, b'x')}, 3.5")


def test_scalars_and_containers_are_decoded_without_any_library() -> None:
    program = (
        "import sys\nfrom gridx.codec import decode\ndecode(bytes.fromhex(sys.argv[1]))\n"
        "print([m for m in ('numpy', 'pandas', 'pyarrow', 'PIL', 'cloudpickle') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, encode({"a": [1.5] * 100, "b": {1, 2}}).hex()],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[4],
    )
    assert done.stdout == "[]\n"


# ---------------------------------------------------------------- the user's own code


class Loud:
    """A class of the notebook that would tell when its code runs."""

    def __init__(self) -> None:
        raise AssertionError("__init__ ran")

    def __setattr__(self, name: str, value: object) -> None:
        raise AssertionError("__setattr__ ran")

    def __setstate__(self, state: object) -> None:
        raise AssertionError("__setstate__ ran")

    def __hash__(self) -> int:
        raise AssertionError("__hash__ ran")

    def __eq__(self, other: object) -> bool:
        raise AssertionError("__eq__ ran")

    @property
    def trap(self) -> int:
        raise AssertionError("property ran")

    @trap.setter
    def trap(self, value: int) -> None:
        raise AssertionError("property ran")


Loud.__module__ = "__main__"
_LOUD = {("__main__", "Loud"): Loud}


def test_an_instance_is_made_without_running_the_users_code() -> None:
    made = decode(_message([tags.OBJECT, "__main__", "Loud", "trap", 1, "a", 2]), classes=_LOUD)
    assert type(made) is Loud
    assert vars(made) == {"trap": 1, "a": 2}


@pytest.mark.parametrize(
    "root",
    [
        [tags.DICT, [tags.OBJECT, "__main__", "Loud"], 1],
        [tags.SET, [tags.OBJECT, "__main__", "Loud"]],
        [tags.SET, [tags.TUPLE, [tags.OBJECT, "__main__", "Loud"]]],
        [tags.SERIES, [tags.OBJECT, "__main__", "Loud"], [tags.RANGE_INDEX, None, 0, 0, 1],
         [tags.ARRAY, "<i8", [0], b""]],
        [tags.INDEX, None, [tags.ARRAY, "O", [1], [[tags.OBJECT, "__main__", "Loud"]]], None],
    ],
)  # fmt: skip
def test_a_key_whose_hash_is_the_users_code_is_refused(root: Any) -> None:
    with pytest.raises(CodecError, match="hash of their own"):
        decode(_message(root), classes=_LOUD)


def test_such_keys_travel_closed_instead_of_spoiling_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Hashed:
        def __hash__(self) -> int:
            return 1

    monkeypatch.setattr(Hashed, "__module__", "__main__")
    back = decode(encode([{Hashed(): 1}, 2]))
    assert isinstance(back[0], Opaque)
    assert back[1] == 2


@pytest.mark.parametrize(
    "root",
    [
        [tags.OBJECT, "__main__", "Point", "__class__", 1],
        [tags.OBJECT, "__main__", "Point", "x", 1],
        [tags.OBJECT, "__main__", "Point", "x", 1, "y", 2, "z", 3],
        [tags.OBJECT, "__main__", "Point", "x y", 1],
        [tags.OBJECT, "__main__", "Colour", "name", "R"],
        [tags.OBJECT, "__main__", "Named"],
        [tags.ENUM, "__main__", "Colour", "__class__"],
        [tags.ENUM, "__main__", "Point", "x"],
        [tags.NAMED_TUPLE, "__main__", "Named", 1],
        [tags.NAMED_TUPLE, "__main__", "Point", 1, 2],
    ],
)
def test_fields_that_a_class_does_not_have_are_refused(root: Any) -> None:
    with pytest.raises(CodecError):
        decode(_message(root), classes=_CLASSES)


@pytest.mark.parametrize(
    ("module", "name"),
    [("os", "system"), ("builtins", "eval"), ("subprocess", "Popen"), ("gridx.codec", "Opaque")],
)
def test_a_class_is_never_looked_up_outside_the_notebook(module: str, name: str) -> None:
    for root in ([tags.OBJECT, module, name, "a", 1], [tags.DEFINITION, module, name]):
        assert isinstance(decode(_message(root), classes=_CLASSES), Opaque)


def test_a_metaclass_or_a_subclass_of_a_builtin_is_no_plain_class() -> None:
    class Sub(dict[str, int]):
        pass

    for cls in (Sub, enum.EnumMeta, ValueError):
        with pytest.raises(CodecError):
            decode(_message([tags.OBJECT, "m", "C"]), classes={("m", "C"): cls})


# ---------------------------------------------------------------- bombs


@pytest.mark.parametrize(
    ("root", "blobs"),
    [
        ([tags.RANGE_INDEX, None, 0, 2**62, 1], []),
        ([tags.ARRAY, "S0", [2**40], b""], []),
        ([tags.ARRAY, "<f8", [2**40, 2**40], b""], []),
        ([tags.ARRAY, "<f8", [0, 2**40, 2**40], b""], []),
        ([tags.ARRAY, "O", [2**40], []], []),
        ([tags.ARRAY, "|O", [1], b"12345678"], []),
        ([tags.ARRAY, "|V8", [1], b"12345678"], []),
        ([tags.ARRAY, "<f16", [1], b"1" * 16], []),
        ([tags.ARRAY, "|b1", [1], b"\x02"], []),
        ([tags.ARRAY, "<U1", [1], b"\xff\xff\xff\x7f"], []),
        ([tags.ARRAY, [["a", "<f8", 4], 8], [1], b"1" * 8], []),
        ([tags.ARRAY, {"b": "<f8", "s": [2**24, 2**24]}, [1], b""], []),
        ([tags.ARROW_ARRAY, "null", 2**40, [2**40, [None], []]], []),
        ([tags.SPARSE, "csr_matrix", [2**40, 2**40], *[[tags.ARRAY, "<i8", [0], b""]] * 3], []),
        (
            [tags.SPARSE, "csr_matrix", [1, 1], [tags.ARRAY, "<f8", [0], b""],
             [tags.ARRAY, "<i8", [0], b""], [tags.ARRAY, "<i8", [2], b"\xff" * 8 + b"\0" * 8]],
            [],
        ),
        ([tags.IMAGE, "RGB", [65_000, 65_000], b"", None], []),
        ([tags.BIG_INT, b"1" * (2**20 + 1)], []),
        ([tags.DECIMAL, "1e99999999999999999999"], []),
        ([tags.FLOATS, b"1234567"], []),
        ([tags.STRINGS, [tags.BLOB, 0], [tags.BLOB, 1]], [b"ab", b"\x09\0\0\0"]),
        ([tags.STRINGS, [tags.BLOB, 0], [tags.BLOB, 1]], [b"ab", b"\xff\xff\xff\xff"]),
        ([tags.BOOLS, b"\x02"], []),
        ([tags.TIMEZONE, "../../etc/passwd"], []),
        ([tags.TIMEZONE, "/etc/passwd"], []),
        ([tags.TIMEZONE, "Nowhere/Land"], []),
        ([tags.REF, 0], []),
        ([tags.TUPLE, [tags.REF, 0]], []),
        ([tags.BLOB, 0], []),
        ([tags.CATEGORICAL, [tags.ARRAY, "|i1", [1], b"\x05"],
          [tags.RANGE_INDEX, None, 0, 2, 1], False], []),
        ([tags.SERIES, None, [tags.RANGE_INDEX, None, 0, 1, 1], [tags.INDEX]], []),
        ([tags.FRAME, [tags.RANGE_INDEX, None, 0, 1, 1], [tags.RANGE_INDEX, None, 0, 2, 1],
          [tags.ARRAY, "<i8", [1], b"\0" * 8]], []),
        ([tags.DEFAULT_DICT, "eval"], []),
        ([tags.RANDOM, [tags.TUPLE, 3, [tags.TUPLE, *[1] * 624, 9_999], None]], []),
        ([tags.GENERATOR, "Generator", "os", [tags.DICT]], []),
        ([tags.DICT, [tags.LIST], 1], []),
        ([tags.DICT, 1], []),
        ([-1], []),
        ([tags.COUNT], []),
        ([True], []),
        ([], []),
        ({}, []),
    ],
)  # fmt: skip
def test_a_value_that_would_harm_its_user_is_refused(root: Any, blobs: list[bytes]) -> None:
    with pytest.raises(CodecError) as refusal:
        decode(_message(root, blobs))
    assert refusal.value.code == "bad_result"


_A = [tags.ARRAY, "<f8", [1], b"\0" * 8]
_I = [tags.ARRAY, "<i8", [1], b"\0" * 8]
_F = [tags.DEFINITION, "__main__", "halved"]


def _periods(ordinal: int, frequency: Any) -> list[Any]:
    node = [tags.ARRAY, "<i8", [1], ordinal.to_bytes(8, "little", signed=True)]
    return [tags.PERIODS, node, frequency]


@pytest.mark.parametrize(
    "root",
    [
        [tags.SEQUENCES, tags.TUPLE, 2, [[tags.LIST, 1]]],
        [tags.SEQUENCES, tags.SET, 1, [[tags.LIST, 1]]],
        [tags.SEQUENCES, tags.TUPLE, 2**40, [[tags.LIST]]],
        [tags.SEQUENCES, tags.TUPLE, 1, []],
        [tags.ROWS, 4_000_000, ["a"], [tags.LIST, 1]],
        [tags.ROWS, 4_000_000, ["a"], [tags.INTS, b"\0" * 8]],
        [tags.OBJECTS, 4_000_000, "__main__", "Plain", ["a"], [tags.LIST, 1]],
        [tags.PACKED, tags.DICT, [tags.INTS, b"\0" * 8]],
        [tags.PACKED, tags.SET, [tags.LIST, 1]],
        [tags.MAPPING, [tags.FLOATS, b"\0" * 8], [tags.LIST, 1]],
        [tags.MAPPING, [tags.INTS, b"\0" * 16], [tags.LIST, 1]],
        [tags.FUNCTION, "os.system", 0, "f", [], [], None, None],
        [tags.FUNCTION, "", 2**40, "f", [], [], None, None, None, 1],
        [tags.CELL],
        [tags.CELL, 1],
        [tags.PARTIAL, 1, 2, 3],
        [tags.EXCEPTION, "builtins", "print", [], None, None],
        [tags.EXCEPTION, "builtins", "int", [], None, None],
        [tags.EXCEPTION, "builtins", "ValueError", [], [tags.DICT, "__class__", 1], None],
        [tags.EXCEPTION, "builtins", "UnicodeDecodeError", [1], None, None],
        [tags.EXCEPTION, "__main__", "Point", [], None, None],
        [tags.PATTERN, "(", 0],
        [tags.PATTERN, "a" * 5_000, 0],
        [tags.PATTERN, "[" + "a-z" * 100 + "]", 2],
        [tags.PATTERN, "a", 128],
        [tags.PATTERN, 5, 0],
        [tags.MASKED_ARRAY, _A, [tags.ARRAY, "|b1", [2], b"\0\0"], b"\0" * 8],
        [tags.MASKED_ARRAY, _A, None, b"\0"],
        [tags.MASKED_ARRAY, [tags.ARRAY, "O", [1], [1]], None, b"\0" * 8],
        [tags.ARRAY_VIEW, "ndarray", _A],
        [tags.ARRAY_VIEW, "matrix", _A],
        [tags.ARRAY_VIEW, "recarray", _A],
        [*_A, 2],
        [tags.ITERATOR, "iter", 5, 0],
        [tags.ITERATOR, "iter", [tags.LIST], 2**61],
        [tags.ITERATOR, "map", [tags.LIST]],
        [tags.ITERATOR, "zip", [tags.LIST]],
        [tags.ITERATOR, "count", "a"],
        [tags.PLAIN, "module", None],
        [tags.PLAIN, "namespace", [tags.LIST]],
        [tags.PLAIN, "captured", [1, 2]],
        [tags.TYPED_ARRAY, "u", 4, b"\xff" * 4],
        [tags.TYPED_ARRAY, "d", 8, b"1"],
        [tags.NUMPY_DTYPE, "V8"],
        [tags.NUMPY_DTYPE, "S0"],
        [tags.PANDAS_DTYPE, 1],
        [tags.TEXT_COLUMN, "pyarrow", "nan",
         [tags.ARROW_ARRAY, "large_string", 1, [1, [None, b"\0" * 16, b""], [1]]]],
        [tags.TEXT_COLUMN, "pyarrow", "nan",
         [tags.ARROW_ARRAY, "large_string", 1, [1, [None, b"\0" * 8 + b"\xff" * 8, b"a"], []]]],
        [tags.ENUM, "__main__", "Access", ["R", "Q"]],
        [tags.ENUM, "__main__", "Access", []],
        [tags.ENUM, "__main__", "Colour", ["R", "G"]],
        [tags.MEMORY_FILE, "BytesIO", b"abc", 4],
        [tags.MEMORY_FILE, "BytesIO", b"abc", -1],
        [tags.MEMORY_FILE, "BytesIO", b"abc", True],
        [tags.MEMORY_FILE, "BytesIO", "abc", 0],
        [tags.MEMORY_FILE, "StringIO", "abc", 4],
        [tags.MEMORY_FILE, "StringIO", b"abc", 0],
        [tags.MEMORY_FILE, "StringIO", [tags.LIST, "a"], 0],
        [tags.MEMORY_FILE, "FileIO", "/etc/passwd", 0],
        [tags.MEMORY_FILE, "BytesIO", b"abc"],
        [tags.VECTORIZED, _F, True, "o f", None, [], False, None],
        [tags.VECTORIZED, _F, True, ["i4,i4"], None, [], False, None],
        [tags.VECTORIZED, _F, True, "d" * 101, None, [], False, None],
        [tags.VECTORIZED, _F, True, [1], None, [], False, None],
        [tags.VECTORIZED, _F, False, "", 1, [], False, None],
        [tags.VECTORIZED, _F, False, "", None, [[tags.LIST]], False, None],
        [tags.VECTORIZED, _F, False, "", None, [0] * 101, False, None],
        [tags.VECTORIZED, _F, False, "", None, [], 1, None],
        [tags.VECTORIZED, _F, False, "", None, [], False, "n->n"],
        [tags.VECTORIZED, _F, False, "", None, [], False, "(" + "n," * 500_000],
        [tags.VECTORIZED, _F, False, "", None, [], False, 5],
        [tags.VECTORIZED, _F],
        _periods(0, "os.system"),
        _periods(0, "0D"),
        _periods(0, "-1D"),
        _periods(0, "Q-XYZ"),
        _periods(0, "D" * 5),
        _periods(0, "9999999999D"),
        _periods(0, None),
        _periods(2**62, "Y-DEC"),
        _periods(-(2**40), "D"),
        [tags.PERIODS, _A, "D"],
        [tags.PERIODS, [tags.ARRAY, "<i8", [1, 1], b"\0" * 8], "D"],
        [tags.PERIODS, 1, "D"],
        [tags.PERIOD, 2**62, "M"],
        [tags.PERIOD, "0", "M"],
        [tags.PERIOD, 0, "os"],
        [tags.INTERVALS, _A, _A, "open"],
        [tags.INTERVALS, _A, _I, "left"],
        [tags.INTERVALS, _A, [tags.ARRAY, "<f8", [2], b"\0" * 16], "left"],
        [tags.INTERVALS, [tags.ARRAY, "<i8", [1], b"\1" + b"\0" * 7], _I, "left"],
        [tags.INTERVALS, _A, [tags.ARRAY, "<f8", [1], b"\xff" * 8], "left"],
        [tags.INTERVALS, *[[tags.ARRAY, "O", [1], [1]]] * 2, "left"],
        [tags.INTERVALS, *[[tags.INTERVALS, _A, _A, "left"]] * 2, "left"],
        [tags.INTERVALS, *[[tags.ARRAY, "|S1", [1], b"a"]] * 2, "left"],
        [tags.INTERVAL, 1, 0, "left"],
        [tags.INTERVAL, 0, 1, "open"],
        [tags.INTERVAL, "a", "b", "left"],
        [tags.INTERVAL, [tags.LIST], 1, "left"],
        [tags.INTERVAL, 0, [tags.TIMESTAMP, 0, "ns", None], "left"],
        [tags.FRAME, [tags.RANGE_INDEX, None, 0, 1, 1], [tags.RANGE_INDEX, None, 0, 2, 1],
         _periods(0, "D")],
        [tags.INDEX, None, _periods(0, "D"), "2D"],
        [tags.OBJECT, "__main__", "Box", "content", 1, "__orig_class__", 1],
        [tags.DERIVED, "__main__", "Shelf", "dict", [tags.LIST], [], []],
        [tags.DERIVED, "__main__", "Point", "list", [tags.LIST], [], []],
        [tags.DERIVED, "__main__", "Shelf", "list", 5, [], []],
        [tags.DERIVED, "__main__", "Shelf", "list", [tags.LIST], ["__class__"], [1]],
        [tags.DERIVED, "__main__", "Metres", "float", "1.5", [], []],
        [tags.DERIVED, "__main__", "Table", "dict",
         [tags.LIST, [tags.TUPLE, [tags.LIST], 1]], [], []],
    ],
)  # fmt: skip
def test_a_forged_part_of_a_newer_kind_is_refused(root: Any) -> None:
    with pytest.raises(CodecError) as refusal:
        decode(_message(root), classes=_CLASSES)
    assert refusal.value.code == "bad_result"


@pytest.mark.parametrize(
    "function",
    [
        1,
        "halved",
        [tags.DEFINITION, "os", "system"],
        [tags.DEFINITION, "__main__", "Plain"],
        [tags.OPAQUE, "f", "f", b"cos\nsystem\n."],
        [tags.PARTIAL, _F, [tags.TUPLE], [tags.DICT]],
    ],
)
def test_a_function_over_arrays_holds_a_function_of_the_user_and_nothing_else(
    function: Any,
) -> None:
    node = [tags.VECTORIZED, function, False, "", None, [], False, None]
    assert isinstance(decode(_message(node), classes=_CLASSES), Opaque)


def test_a_function_over_arrays_is_made_without_a_call() -> None:
    def loud(x: int) -> int:
        raise AssertionError("it ran")

    loud.__module__ = "__main__"
    for kinds in ([False, ""], [True, "d"], [True, [[tags.NUMPY_DTYPE, "f4"], "S"]]):
        for signature in (None, "(n),()->()"):
            node = [tags.VECTORIZED, [tags.DEFINITION, "m", "loud"], *kinds, "d", [0, "x"], True]
            made = decode(_message([*node, signature]), classes={("m", "loud"): loud})
            assert made.pyfunc is loud
            assert (made.excluded, made.signature) == ({0, "x"}, signature)


class Finalised:
    """A class of the notebook that acts when it is dropped."""

    def __del__(self) -> None:
        raise AssertionError("__del__ ran")


def test_a_class_that_acts_when_it_is_dropped_is_not_made_from_a_strangers_data() -> None:
    Finalised.__module__ = "__main__"
    node = [tags.OBJECT, "__main__", "Finalised"]
    with pytest.raises(CodecError, match="not a plain class"):
        decode(_message(node), classes={("__main__", "Finalised"): Finalised})


def test_a_function_is_made_of_the_users_code_alone_and_not_run() -> None:
    def owner() -> Any:
        def inner(x: int = 1) -> int:
            raise AssertionError("it ran")

        return inner

    owner.__module__, owner.__qualname__ = "__main__", "owner"
    classes: dict[tuple[str, str], object] = {("__main__", "owner"): owner}
    node = [tags.FUNCTION, "owner", 1, "inner", [], [], [tags.TUPLE, 5], None, None]
    made = decode(_message(node), classes=classes)
    assert made.__code__ in owner.__code__.co_consts
    assert made.__defaults__ == (5,)
    for wrong in ([*node[:3], "other", *node[4:]], [*node[:2], 9, *node[3:]]):
        with pytest.raises(CodecError):
            decode(_message(wrong), classes=classes)
    assert isinstance(decode(_message(node), classes={}), Opaque)


@pytest.mark.parametrize("attack", _attack_pickles())
def test_an_attack_pickle_as_a_report_of_an_error_stays_inert(attack: bytes) -> None:
    for data in (
        {"type": attack, "module": attack, "message": attack, "args": [attack]},
        {"type": "ValueError", "module": "builtins", "fields": {"x": attack}, "notes": [attack]},
        {"type": "E", "frames": [{"file": attack, "lines": [attack], "arguments": [attack]}]},
        {"type": "E", "cause": attack, "members": [attack], "mro": [attack]},
    ):
        made = rebuild(data, cell_file="<cell>")
        assert isinstance(made, RemoteError)
        "".join(traceback.format_exception(made))
    assert not hasattr(builtins, "GRIDX_PWNED")


@pytest.mark.parametrize("bits", ["MT19937", "Philox"])
def test_a_generator_whose_position_lies_outside_its_state_is_refused(bits: str) -> None:
    generator = np.random.Generator(getattr(np.random, bits)(1))
    node = Encoder().node(generator)
    state = dict(generator.bit_generator.state)
    del state["bit_generator"]
    for position in (-1, 625, 2**31):
        if bits == "Philox":
            state["buffer_pos"] = position
        else:
            state["state"]["pos"] = position
        encoder = Encoder()
        bad = [*node[:3], encoder.node(state)]
        with pytest.raises(CodecError, match="generator"):
            decode(_message(bad, [bytes(blob) for blob in encoder.blobs]))


def test_keys_with_one_hash_do_not_make_a_dict_quadratic() -> None:
    step = 2**61 - 1
    keys = [[tags.BIG_INT, (i * step).to_bytes(20, "little")] for i in range(1, 400)]
    root = [tags.DICT, *[part for key in keys for part in (key, 1)]]
    with pytest.raises(CodecError, match="one hash"):
        decode(_message(root))


def test_depth_and_number_of_parts_are_bounded_before_anything_is_built() -> None:
    deep: Any = [tags.LIST]
    for _ in range(200):
        deep = [tags.LIST, deep]
    raw = b"\x92\x00" * 100_000 + b"\xc0"
    with pytest.raises(CodecError, match="too deeply"):
        scan(raw, depth=360, nodes=10**7)
    with pytest.raises(CodecError, match="too deeply"):
        decode(_message(deep))
    with pytest.raises(CodecError, match="too many parts"):
        decode(_message([tags.LIST, *[[tags.LIST]] * 100]), limits=Limits(nodes=50))
    with pytest.raises(CodecError, match="above the limit"):
        decode(encode(b"x" * 100_000), limits=Limits(bytes=50_000))


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc1",
        b"\xd4\x01\x02",
        b"\xc7\x01\x01\x01",
        b"\x93\x01",
        b"\x01\x01",
        b"\xa5ab",
    ],
)
def test_a_head_that_lies_about_its_length_is_refused(head: bytes) -> None:
    with pytest.raises(CodecError):
        scan(head, depth=100, nodes=10_000)
    with pytest.raises(CodecError):
        decode(VALUE_MAGIC + len(head).to_bytes(8, "little") + head)


def test_the_scan_accepts_all_that_messagepack_can_say() -> None:
    value = [None, True, 1, -1, 200, 2**16, 2**32, 2**63, -(2**40), 1.5, "a", "b" * 40, "c" * 300,
             "d" * 70_000, b"e", b"f" * 300, b"g" * 70_000, [1] * 20, [2] * 70_000,
             {"k": 1}, {str(i): i for i in range(20)}]  # fmt: skip
    scan(msgspec.msgpack.encode(value), depth=10, nodes=10**6)


def test_other_versions_are_refused() -> None:
    head = msgspec.msgpack.encode([99, None, []])
    with pytest.raises(CodecError, match="version"):
        decode(VALUE_MAGIC + len(head).to_bytes(8, "little") + head)
    with pytest.raises(CodecError, match="not a result"):
        decode(b"PK\x03\x04" + bytes(30))
    with pytest.raises(CodecError, match="cut off"):
        decode(b"GXV2")


def test_every_sample_that_is_cut_off_anywhere_is_refused() -> None:
    for value in (sample_values.FRAME, [Point(1, "é"), Colour.R], {"a": np.arange(5)}):
        data = encode(value)
        for end in range(0, len(data), max(1, len(data) // 200)):
            with pytest.raises(CodecError):
                decode(data[:end], classes=_CLASSES)


def test_an_input_is_found_by_name_among_what_was_sent_alone() -> None:
    sent = [1]
    encoder = Encoder(inputs={id(sent): "v"})
    node = encoder.node({"held": sent})
    data = join(
        RESULT_MAGIC,
        [[["r", 0, node], ["s", 1, [tags.INPUT, "secret"]]], [], [], [], [], [], None, []],
        [],
    )
    namespace: dict[str, Any] = {"v": sent, "secret": "mine"}
    apply_result(data, namespace, expected={"v", "r", "s"}, cell_source="")
    assert namespace["r"]["held"] is sent
    assert isinstance(namespace["s"], Opaque)


def test_a_handle_without_its_value_cannot_be_sent_and_says_why() -> None:
    lost = Opaque("re.Match", "it cannot be pickled", b"")
    assert lost.is_lost
    assert "not here" in repr(lost)
    with pytest.raises(ValueError, match="nothing to open"):
        lost.unpickle(trust=True)
    with pytest.raises(StaysHere, match="make plain data"):
        pickle.dumps(lost)
    with pytest.raises(CaptureError) as refusal:
        capture("text = match.group()", {"match": [lost], "__name__": "__main__"})
    assert "match" in str(refusal.value)
    assert "stayed in its container" in str(refusal.value)


def test_a_handle_is_one_object_however_it_is_copied_and_can_be_referred_to_weakly() -> None:
    handle = Opaque("T", "a model", b"pickle")
    assert copy.copy(handle) is handle
    assert copy.deepcopy([handle])[0] is handle
    assert weakref.ref(handle)() is handle
    assert handle.size_bytes == 6
