"""What stands in a kernel's namespace, as text that two kernels can be compared by.

The text of this module is executed inside both kernels. It must not import what the notebook has
not imported, and must not change anything.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import types
from typing import Any

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{6,}")
_OWN = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})
_MUTABLE = (list, dict, set, bytearray)


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:100]}…{_digest(text.encode())}"


def _of_numpy(value: Any, depth: int) -> list[Any]:
    if value.dtype.hasobject:
        return ["array", str(value.dtype), list(value.shape), _of(value.tolist(), depth + 1)]
    return ["array", str(value.dtype), list(value.shape), _digest(value.tobytes())]


def _of_pandas(value: Any, depth: int) -> list[Any]:
    name = type(value).__name__
    if name == "DataFrame":
        columns = [[repr(c), _of_pandas(value[c], depth + 1)] for c in value.columns]
        return [name, _of_pandas(value.index, depth + 1), columns]
    if name == "Series":
        head = [name, str(value.dtype), repr(value.name), _of_pandas(value.index, depth + 1)]
        return [*head, _digest(repr(value.tolist()).encode())]
    return [name, str(value.dtype), repr(value.names), _digest(repr(value.tolist()).encode())]


def _of(value: Any, depth: int = 0) -> Any:
    kind = type(value)
    if depth > 12:
        return "…"
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, type):
        return ["class", value.__qualname__]
    if isinstance(value, types.FunctionType):
        return ["function", value.__qualname__]
    if kind in (int, bool, complex, type(None)):
        return repr(value)
    if kind is float:
        return repr(value)
    if kind in (str, bytes, bytearray):
        return [kind.__name__, _short(repr(value))]
    if kind in (list, tuple):
        return [kind.__name__, [_of(item, depth + 1) for item in value]]
    if kind in (set, frozenset):
        return [kind.__name__, sorted(json.dumps(_of(item, depth + 1)) for item in value)]
    if isinstance(value, dict):
        pairs = [[_of(k, depth + 1), _of(v, depth + 1)] for k, v in value.items()]
        return [kind.__name__, pairs]
    home = (kind.__module__ or "").partition(".")[0]
    if home == "gridx" and kind.__name__ == "Opaque":
        return ["closed", value.type_name]
    if home == "numpy" and hasattr(value, "tobytes"):
        return [kind.__name__, *_of_numpy(sys.modules["numpy"].asarray(value), depth)]
    if (home == "pandas" and hasattr(value, "tolist")) or kind.__name__ == "DataFrame":
        return _of_pandas(value, depth)
    if home == "scipy" and hasattr(value, "toarray"):
        return [kind.__name__, *_of_numpy(value.toarray(), depth)]
    if home == "PIL" and hasattr(value, "tobytes"):
        return [value.mode, list(value.size), _digest(value.tobytes())]
    fields = getattr(value, "__dict__", None)
    if kind.__module__ == "__main__" and isinstance(fields, dict):
        return [kind.__qualname__, _of(fields, depth + 1)]
    return [kind.__qualname__, _short(_ADDRESS.sub("0x", repr(value)))]


def describe(namespace: dict[str, Any]) -> str:
    """Return, as JSON, each name with what it stands for, and which names share one object."""
    names: dict[str, Any] = {}
    owners: dict[int, list[str]] = {}
    for name in sorted(namespace):
        if name.startswith("_") or name in _OWN:
            continue
        value = namespace[name]
        try:
            names[name] = _of(value)
        except Exception as error:
            names[name] = ["cannot be described", type(error).__name__]
        if isinstance(value, _MUTABLE):
            owners.setdefault(id(value), []).append(name)
    shared = sorted(group for group in owners.values() if len(group) > 1)
    return json.dumps({"names": names, "shared": shared})
