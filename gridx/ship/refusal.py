"""Which variable cannot travel, which attribute of it is the cause, and what to do instead."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..errors import CaptureError

_MAX_TRIALS: Final = 300
_MAX_DEPTH: Final = 12
_MAX_CHILDREN: Final = 200

# Words in what the pickler says, and what to do about such an object.
_ADVICE: Final = (
    ("is a secret", "Send what the cell needs of it under a name of its own."),
    ("os.environ", "Send the one value that is needed under a name of its own."),
    ("zipfile", "Open the archive inside the cell."),
    ("tarfile", "Open the archive inside the cell."),
    ("h5py", "Open the file inside the cell."),
    ("zarr", "Open the store inside the cell."),
    ("duckdb", "Open the database inside the cell."),
    ("sqlite3", "Open the database inside the cell."),
    ("psycopg", "Open the connection inside the cell."),
    ("socket", "Open the connection inside the cell."),
    ("popen", "Start the process inside the cell."),
    ("threading.thread", "Start the thread inside the cell."),
    ("mmap", "Map the file inside the cell, or send its contents."),
    ("opened for reading", "Open the file inside the cell."),
    ("closed files", "Open the file inside the cell."),
    ("lock", "Create the lock inside the cell."),
    ("generator", "Send a list instead: name = list(name)."),
    ("coroutine", "Await it first, and send its result."),
    ("weakref", "Send the object itself instead of a weak reference."),
    ("weakproxy", "Send the object itself instead of a weak reference."),
    ("BufferedReader", "Read the file first, and send its contents."),
    ("TextIOWrapper", "Read the file first, and send its contents."),
    ("open file", "Read the file first, and send its contents."),
    ("recursion", "Flatten the structure: it is nested too deeply to be sent."),
)


class NameWithheld(CaptureError):
    """The cell needs a name that looks like a secret, or os.environ."""

    code = "withheld"
    default_hint = "Send it with --needs NAME; whoever owns the worker can read it."


class UnknownNeed(CaptureError):
    """A name that was asked for is not in the notebook."""

    code = "unknown_name"
    default_hint = "Correct the name, or run the cell that defines it."


class MissingModules(CaptureError):
    """No image on the grid has a package that the cell or one of its variables needs."""

    code = "missing_modules"
    default_hint = (
        "Have it installed there: --pip NAME; or put a pure-Python package beside the notebook, "
        "from where it travels: `pip install --no-deps --target . NAME`; or run the cell without "
        "%%gridx."
    )


@dataclass(frozen=True, slots=True)
class Unpicklable:
    """Why a variable cannot travel."""

    path: str
    """The variable, or the attribute of it that is the cause: ``model.pool[0].lock``."""
    sentence: str
    hint: str

    def error(self, name: str) -> CaptureError:
        """Return the refusal of the variable ``name``."""
        return CaptureError(self.sentence, hint=self.hint, name=name, path=self.path)


class StaysHere(TypeError):
    """Raised by the ``__reduce__`` of an object that belongs to its notebook; the text says why."""


def explain(
    name: str, value: object, error: Exception, fails: Callable[[object], bool]
) -> Unpicklable:
    """Return why ``value`` cannot travel.

    Args:
        name: the variable.
        value: its value.
        error: what the pickler raised for it.
        fails: tells whether the pickler refuses a part; asked a bounded number of times.
    """
    reason = _reason(error)
    if isinstance(error, StaysHere):  # what lies inside such an object is no business of its user
        sentence = f"Variable {name!r} cannot be sent: {reason}."
        return Unpicklable(
            path=name, sentence=sentence, hint=f"Leave it out with --without {name}."
        )
    path, culprit = _search(name, value, fails)
    what = f"Variable {name!r} cannot be sent: {reason}."
    if path != name:
        what = f"Variable {name!r} cannot be sent, because of {path} ({_kind(culprit)}): {reason}."
    return Unpicklable(path=path, sentence=what, hint=_advice(error, culprit, name))


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError) or "recursion" in str(error):
        return "it is nested too deeply"
    text = " ".join(str(error).split()).rstrip(".")
    return text or type(error).__name__


def _kind(value: object) -> str:
    cls = type(value)
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


def _advice(error: Exception, culprit: object, name: str) -> str:
    text = f"{_kind(culprit)} {error} {type(error).__name__}".lower()
    for word, advice in _ADVICE:
        if word.lower() in text:
            return f"{advice} Or leave it out with --without {name}."
    return f"Create it inside the cell, or leave it out with --without {name}."


def _search(name: str, value: object, fails: Callable[[object], bool]) -> tuple[str, object]:
    path, trials = name, _MAX_TRIALS
    seen = {id(value)}
    for _ in range(_MAX_DEPTH):
        for step, child in _children(value):
            if id(child) in seen or trials <= 0:
                continue
            trials -= 1
            seen.add(id(child))
            if fails(child):
                path, value = path + step, child
                break
        else:
            break
    return path, value


def _children(value: object) -> Iterator[tuple[str, object]]:
    match value:
        case dict():
            for key in list(value)[:_MAX_CHILDREN]:
                yield f"[{key!r:.40}]", value[key]
        case list() | tuple():
            for index in range(min(len(value), _MAX_CHILDREN)):
                yield f"[{index}]", value[index]
        case types.FunctionType():
            yield from _children_of_function(value)
        case types.MethodType():
            yield ".__self__", value.__self__
        case type():
            for key, child in list(vars(value).items()):
                if not key.startswith("__"):
                    yield f".{key}", child
        case _:
            for key, child in list(_attributes(value).items())[:_MAX_CHILDREN]:
                yield f".{key}", child


def _children_of_function(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f" (its variable {name})", cell.cell_contents
        except ValueError:
            continue
    for index, default in enumerate(function.__defaults__ or ()):
        yield f" (its default {index})", default


def _attributes(value: object) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", None) or {})
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(value, slot):
                found[slot] = getattr(value, slot)
    return found
