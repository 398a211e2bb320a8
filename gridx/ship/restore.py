"""Puts captured names into a namespace. Runs in the container, where the cell runs.

Needs cloudpickle and nothing of ours: it is copied into the image, and works under
``python -I``. A payload is one string of bytes:

    header    magic, Python's major and minor version, number of buffers, length of the stream
    sizes     one u64 a buffer; the top bit marks a buffer that must stay read-only
    stream    pickles of one pickler with one memo: first the code, then each value
    buffers   the raw memory of arrays, each at a multiple of 64 bytes
"""

from __future__ import annotations

import functools
import importlib
import io
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

MAGIC: Final = b"GXP1"
HEADER: Final = struct.Struct("<4sBBxxIQ")
SIZE: Final = struct.Struct("<Q")
READ_ONLY: Final = 1 << 63
ALIGNMENT: Final = 64
# Module name under which payloads refer to the helpers below, wherever this file lies.
HOME: Final = "gridx.ship.restore"


class RestoreError(Exception):
    """The payload cannot be restored here; nothing of the cell has run."""

    def __init__(
        self, message: str, *, missing_module: str | None = None, missing_name: str | None = None
    ) -> None:
        super().__init__(message)
        self.missing_module = missing_module
        self.missing_name = missing_name


def restore(payload: bytes | bytearray | memoryview, namespace: dict[str, Any]) -> set[str]:
    """Put the names of ``payload`` into ``namespace`` and return them.

    ``namespace`` should be the ``__dict__`` of ``sys.modules["__main__"]``. With a writable
    ``payload`` arrays share its memory; otherwise they are copied.

    Raises:
        RestoreError: another Python version, a damaged payload, a module that is missing.
    """
    try:
        stream, buffers = _split(memoryview(payload).cast("B"))
        return _load(_Restorer(io.BytesIO(stream), namespace, buffers), namespace)
    except RestoreError:
        raise
    except ImportError as exc:
        name = exc.name or str(exc)
        raise RestoreError(
            f"The cell's variables need the module {name!r}, which this image does not have.",
            missing_module=exc.name,
        ) from exc
    except NameError as exc:
        missing = getattr(exc, "name", None)
        raise RestoreError(
            f"A variable of the cell refers to the name {missing!r}, which was not sent.",
            missing_name=missing,
        ) from exc
    except Exception as exc:
        raise RestoreError(
            f"The cell's variables could not be restored: {type(exc).__name__}: {exc}"
        ) from exc


def _split(view: memoryview) -> tuple[memoryview, list[memoryview]]:
    if len(view) < HEADER.size:
        raise RestoreError("The payload is cut off.")
    magic, major, minor, count, stream_bytes = HEADER.unpack_from(view)
    if magic != MAGIC:
        raise RestoreError("The payload is of another release of Grid-X.")
    if (major, minor) != sys.version_info[:2]:
        raise RestoreError(
            f"The cell was sent from Python {major}.{minor}, and this container runs "
            f"{sys.version_info[0]}.{sys.version_info[1]}: code does not cross minor versions."
        )
    at = HEADER.size + count * SIZE.size
    stream = view[at : at + stream_bytes]
    sizes = [SIZE.unpack_from(view, HEADER.size + i * SIZE.size)[0] for i in range(count)]
    at += stream_bytes
    buffers = []
    for size in sizes:
        length, at = size & ~READ_ONLY, at + -at % ALIGNMENT
        piece = view[at : at + length]
        if len(piece) != length:
            raise RestoreError("The payload is cut off.")
        if size & READ_ONLY:
            piece = piece.toreadonly()
        elif piece.readonly:
            piece = memoryview(bytearray(piece))
        buffers.append(piece)
        at += length
    return stream, buffers


def _load(restorer: _Restorer, namespace: dict[str, Any]) -> set[str]:
    code, submodules, names = restorer.load()
    for module in submodules:
        try:
            importlib.import_module(module)
        except ImportError:
            continue  # the attribute error in the cell says what is missing
    namespace.update(code)
    for name, value in _below_the_namespace(restorer.load, names, namespace):
        namespace[name] = value
    return {*code, *names}


def _below_the_namespace(
    load: Callable[[], object], names: list[str], namespace: dict[str, Any]
) -> Iterator[tuple[str, object]]:
    """Load each value a few frames below code that runs in ``namespace``.

    Libraries that evaluate formulas while they unpickle (patsy) look up the frames of their
    callers for the names of the formula.
    """
    namespace["__gridx_load__"] = load
    try:
        exec(  # noqa: S102  # our own constant text
            "def __gridx_deep__(n):\n"
            "    return __gridx_load__() if n == 0 else __gridx_deep__(n - 1)\n",
            namespace,
        )
        deep = namespace["__gridx_deep__"]
        for name in names:
            yield name, deep(8)
    finally:
        namespace.pop("__gridx_load__", None)
        namespace.pop("__gridx_deep__", None)


class _Restorer(pickle.Unpickler):
    """An unpickler in which the helpers of this module stand for what the pickler replaced."""

    def __init__(
        self, stream: io.BytesIO, namespace: dict[str, Any], buffers: list[memoryview]
    ) -> None:
        super().__init__(stream, buffers=buffers)
        self._helpers: dict[str, Callable[..., object]] = {
            "target_namespace": lambda: namespace,
            "rebuild_lru_cache": rebuild_lru_cache,
            "rebuild_singledispatch": rebuild_singledispatch,
        }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name == HOME:
            return self._helpers[global_name]
        return super().find_class(module_name, global_name)


def target_namespace() -> dict[str, Any]:
    """Stand in a payload for the namespace that it is restored into."""
    raise RestoreError("This payload can only be opened by gridx.ship.restore.restore().")


def rebuild_lru_cache(function: Callable[..., object], parameters: dict[str, Any]) -> object:
    """Return ``function`` with an empty cache of the same size."""
    return functools.lru_cache(**parameters)(function)


def rebuild_singledispatch(registry: dict[type, Callable[..., object]]) -> object:
    """Return the generic function whose implementations are ``registry``."""
    generic = functools.singledispatch(registry[object])
    for cls, implementation in registry.items():
        if cls is not object:
            generic.register(cls, implementation)
    return generic
