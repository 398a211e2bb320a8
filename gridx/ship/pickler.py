"""The pickler that takes notebook values to a container: cloudpickle with seven corrections.

Stock cloudpickle gives each function a private copy of its globals and of its closure cells,
pickles ``lru_cache`` objects and ``NewType`` by name, cannot pickle ``singledispatch`` functions
nor, before Python 3.12, a ``cached_property``, and forgets submodules. Each of these is a case in ``tests/unit/gridx/ship/capture_cases.py``.

The corrections hang on private hooks of cloudpickle; ``_check_hooks`` fails at import when one
of them is gone.
"""

from __future__ import annotations

import functools
import io
import os
import pickle
import re
import types
import typing
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

import cloudpickle
from cloudpickle import cloudpickle as _internals

from . import restore
from .payload import ANY_PYTHON, Packed, pack
from .withheld import is_credential

if TYPE_CHECKING:
    from .chunk_digests import ChunkDigests, PendingBlobs
    from .source_code import SourceDefinitions

# Smaller buffers cost less inside the stream than beside it.
_OUT_OF_BAND_BYTES: Final = 4_096
LEAST_BLOB_BYTES: Final = 65_536
_MAX_FILE_BYTES: Final = 1_000_000
_HOOKS: Final = ("_function_getnewargs", "_dynamic_function_reduce", "reducer_override", "dump")
_FUNCTIONS: Final = (
    "_function_getstate",
    "_function_setstate",
    "_make_function",
    "_should_pickle_by_reference",
)


def _check_hooks() -> None:
    missing = [name for name in _HOOKS if not hasattr(cloudpickle.Pickler, name)]
    missing += [name for name in _FUNCTIONS if not hasattr(_internals, name)]
    if not hasattr(cloudpickle.Pickler(io.BytesIO()), "globals_ref"):
        missing.append("globals_ref")
    if missing:
        raise ImportError(
            f"cloudpickle {cloudpickle.__version__} lacks {', '.join(missing)}, which Grid-X "
            f"needs: install the range that gridx-jupyter names, `pip install -U gridx-jupyter`."
        )


_check_hooks()


class NotShippable(pickle.PicklingError):
    """A value that is refused although it could be pickled."""


class _Namespace(dict[str, Any]):
    """Stands for the notebook's namespace inside a payload."""


class _Buffers:
    """The buffers beside a stream.

    Apart from the pickler, which would keep itself and all that it has pickled alive if it held
    a method of its own: large arrays are given back when the user deletes them, not later.
    """

    def __init__(self, digests: ChunkDigests | None) -> None:
        self.digests = digests
        self.raws: list[memoryview] = []
        self.size_bytes = 0
        self.pending: dict[int, PendingBlobs] = {}

    def keep(self, buffer: pickle.PickleBuffer) -> bool:
        """Take ``buffer`` out of the stream, and return False, unless it is small."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not one block of memory: it goes into the stream
        if raw.nbytes < _OUT_OF_BAND_BYTES:
            return True
        if self.digests is not None and raw.nbytes >= LEAST_BLOB_BYTES:
            # It is hashed while the rest is pickled.
            self.pending[len(self.raws)] = self.digests.start(raw)
        self.raws.append(raw)
        self.size_bytes += raw.nbytes
        return False


class Shipper(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Pickles values of one notebook namespace into one stream with one memo.

    A function whose globals are the notebook's gets the *target* namespace as its globals, so
    that the cell and the functions see one state.
    """

    def __init__(
        self,
        namespace: dict[str, Any],
        *,
        shipped: Collection[str] = (),
        may_take: Callable[[str, object], bool] = lambda name, value: True,
        digests: ChunkDigests | None = None,
        definitions: SourceDefinitions | None = None,
    ) -> None:
        """
        Args:
            namespace: the notebook's.
            shipped: names that travel on their own, so that functions need not carry them.
            may_take: whether a function may carry the global ``name`` of the notebook.
            digests: cuts large buffers into blobs; without it all goes into one payload.
            definitions: what is made again from source; code travels in no other form then.
        """
        self._stream = io.BytesIO()
        self._buffers = _Buffers(digests)
        self._definitions = definitions
        self.defined: set[str] = set()
        """Names whose definitions the values refer to."""
        self.modules: set[str] = set()
        self.carried: dict[str, object] = {}
        """Globals that travel only because a function hidden in a value reads them."""
        self.warnings: list[str] = []
        super().__init__(self._stream, protocol=5, buffer_callback=self._buffers.keep)
        self._namespace = namespace
        self._stand_in = _Namespace()
        self._shipped = frozenset(shipped)
        self._may_take = may_take
        self.may_take_secrets = False
        """What is pickled now was asked for by name, so that it may hold credentials."""
        self._cells: dict[int, types.CellType] = {}
        # Kept alive, so that an id in self._cells is never used twice.
        self._functions: list[types.FunctionType] = []
        self.globals_ref[id(namespace)] = self._stand_in

    @property
    def size_bytes(self) -> int:
        """Bytes so far, buffers included."""
        return self._stream.tell() + self._buffers.size_bytes

    @property
    def stream_bytes(self) -> int:
        """Bytes of the stream so far, without the buffers beside it."""
        return self._stream.tell()

    def packed(self) -> Packed:
        """Return all that was dumped, in the form that ``restore`` reads."""
        return pack(
            self._stream.getvalue(),
            self._buffers.raws,
            self._buffers.pending,
            python=None if self._definitions is None else ANY_PYTHON,
            with_blobs=self._buffers.digests is not None,
        )

    def dumped(self) -> tuple[bytes, list[memoryview]]:
        """Return the stream and the buffers beside it."""
        return self._stream.getvalue(), self._buffers.raws

    def _function_getnewargs(self, function: types.FunctionType) -> tuple[Any, ...]:
        arguments = super()._function_getnewargs(function)
        if not function.__closure__:
            return tuple(arguments)
        # One new cell for each *original* cell: closures that share a cell go on sharing it.
        self._functions.append(function)
        cells = tuple(
            self._cells.setdefault(id(cell), types.CellType()) for cell in function.__closure__
        )
        return (*arguments[:-1], cells)

    def _dynamic_function_reduce(self, function: types.FunctionType) -> tuple[Any, ...]:
        reduced = super()._dynamic_function_reduce(function)
        if function.__globals__ is not self._namespace:
            return tuple(reduced)
        _, slots = reduced[2]
        kept = {}
        for name, value in slots["__globals__"].items():
            if name not in self._shipped and self._may_take(name, value):
                kept[name] = self.carried[name] = value
        slots["__globals__"] = kept
        return tuple(reduced)

    def reducer_override(self, value: Any) -> Any:
        cls = type(value)
        if not self.may_take_secrets and is_credential(value):
            raise NotShippable(_holds_a_secret(value))
        if self._definitions is not None:
            reduced = self._reduce_to_source(value, self._definitions)
            if reduced is not NotImplemented:
                return reduced
        rule = _RULES.get(cls)
        if rule is not None:
            reduced = rule(self, value)
            if reduced is not NotImplemented:
                return reduced
        elif str(cls.__module__).startswith("pandas"):  # a class may say None
            reduced = _reduce_pandas(value)
            if reduced is not NotImplemented:
                self.modules.add("pandas")
                return reduced
        elif cls.__name__ == "NpzFile":
            # An open .npz archive: its arrays travel, its file does not.
            return dict, ({name: value[name] for name in value.files},)
        self._note_module(value)
        reduced = super().reducer_override(value)
        if isinstance(value, type) and isinstance(reduced, tuple) and len(reduced) > 2:
            # Noted in the class when its first instance is pickled; the other side finds it anew.
            reduced[2][0].pop("__slotnames__", None)
        return reduced

    def _reduce_to_source(self, value: Any, definitions: SourceDefinitions) -> Any:
        path = definitions.paths.get(id(value))
        if path is not None:
            self.defined.add(path.partition(".")[0])
            return restore.find_defined, (path,)
        if isinstance(value, types.CodeType):
            raise NotShippable(definitions.reason(value))
        is_code = isinstance(value, types.FunctionType | type) and value.__module__ != "builtins"
        if is_code and not _internals._should_pickle_by_reference(value):
            raise NotShippable(definitions.reason(value))
        return NotImplemented

    def _note_module(self, value: object) -> None:
        if isinstance(value, types.ModuleType):
            self.modules.add(value.__name__)
            return
        is_code = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
        module = getattr(value if is_code else type(value), "__module__", None)
        if isinstance(module, str) and module not in ("__main__", "builtins"):
            self.modules.add(module)

    def _reduce_namespace(self, value: object) -> Any:
        return restore.target_namespace, ()

    def _reduce_lru_cache(self, value: Any) -> Any:
        if getattr(value, "__module__", "") != "__main__":
            return NotImplemented
        return restore.rebuild_lru_cache, (value.__wrapped__, value.cache_parameters())

    def _reduce_cached_property(self, value: Any) -> Any:
        # Up to Python 3.11 it holds a lock.
        return functools.cached_property, (value.func,), {"attrname": value.attrname}

    def _reduce_function(self, value: Any) -> Any:
        is_generic = (
            value.__module__ == "__main__"
            and value.__code__.co_name == "wrapper"
            and hasattr(value, "registry")
            and hasattr(value, "dispatch")
        )
        if not is_generic:
            return NotImplemented
        return restore.rebuild_singledispatch, (dict(value.registry),)

    def _reduce_new_type(self, value: Any) -> Any:
        if value.__module__ != "__main__":
            return NotImplemented
        return typing.NewType, (value.__name__, value.__supertype__)

    def _reduce_match(self, value: re.Match[Any]) -> Any:
        # Made again by the method that finds the same groups at the same places.
        for method in (value.re.match, value.re.fullmatch, value.re.search):
            for start in (value.pos, value.start()):
                found = method(value.string, start, value.endpos)
                if found is not None and found.regs == value.regs:
                    return method, (value.string, start, value.endpos)
        return NotImplemented

    def _reduce_file(self, value: Any) -> Any:
        try:
            size = os.fstat(value.fileno()).st_size
        except (OSError, ValueError):
            return NotImplemented
        if size > _MAX_FILE_BYTES:
            raise NotShippable(f"the open file {value.name!r} holds {size:,} bytes")
        self.warnings.append(
            f"The open file {value.name!r} travels as its remaining text; "
            f"what the cell does to it stays there."
        )
        return NotImplemented

    def _reduce_environ(self, value: Any) -> Any:
        return dict, (dict(value),)


def _holds_a_secret(value: object) -> str:
    if type(value) is type(os.environ):
        return "it holds os.environ, which may hold secrets"
    return f"it holds an object of {type(value).__qualname__}, which is a secret"


_pandas_rules: dict[type, Callable[[Any], Any]] = {}


def _reduce_pandas(value: Any) -> Any:
    if not _pandas_rules:
        from .pandas_values import rules

        _pandas_rules.update(rules())
    rule = _pandas_rules.get(type(value))
    if rule is None:
        return NotImplemented
    try:
        return rule(value)
    except Exception:
        return NotImplemented  # a pandas that is built otherwise: it pickles itself


_Rule = Callable[[Shipper, Any], Any]
_RULES: Final[dict[type, _Rule]] = {
    _Namespace: Shipper._reduce_namespace,
    functools._lru_cache_wrapper: Shipper._reduce_lru_cache,
    functools.cached_property: Shipper._reduce_cached_property,
    types.FunctionType: Shipper._reduce_function,
    typing.NewType: Shipper._reduce_new_type,
    re.Match: Shipper._reduce_match,
    io.TextIOWrapper: Shipper._reduce_file,
    type(os.environ): Shipper._reduce_environ,
}
