"""Puts captured names into a namespace. Runs in the container, where the cell runs.

Needs cloudpickle and nothing of ours: it is copied into the image, and works under
``python -I``. A payload is a head and, around it, blobs: files named by their digest.

    header    magic, Python's major and minor version (0.0: any), flags, bytes of a chunk and of
              the body
    body      as it is, or the digests of its chunks when the header says so:
      counts    number of buffers, length of the stream
      sizes     one u64 a buffer; the top bits mark one that stays read-only, or lies apart
      digests   32 bytes for each chunk of the buffers that lie apart, then of the stream when
                the header says that it does
      stream    pickles of one pickler with one memo: first the code, then each value; where
                the code is source, it is run before the values that refer to it
      buffers   the raw memory of the other arrays, each at a multiple of 64 bytes

A blob is mapped and not read: its pages are those of the file, which whoever wrote it has
paid for, until the cell writes to them.
"""

from __future__ import annotations

import functools
import importlib
import mmap
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

MAGIC: Final = b"GXP2"
HEADER: Final = struct.Struct("<4sBBBxIQ44x")
BODY: Final = struct.Struct("<IQ")
SIZE: Final = struct.Struct("<Q")
READ_ONLY: Final = 1 << 63
APART: Final = 1 << 62
BODY_APART: Final = 1
STREAM_APART: Final = 2
ALIGNMENT: Final = 64
CHUNK_BYTES: Final = 8 << 20
DIGEST_BYTES: Final = 32
_MAP_FIXED: Final = 0x10
# A mapping costs some page faults; below this it is cheaper to read.
_WORTH_MAPPING_BYTES: Final = 1 << 20
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


def restore(
    payload: bytes | bytearray | memoryview,
    namespace: dict[str, Any],
    folder: str | None = None,
) -> set[str]:
    """Put the names of ``payload`` into ``namespace`` and return them.

    ``namespace`` should be the ``__dict__`` of ``sys.modules["__main__"]``. With a writable
    ``payload`` arrays share its memory; otherwise they are copied. ``folder`` is where the blobs
    lie; they must not change while the process lives.

    Raises:
        RestoreError: another Python version, a damaged payload, a blob or a module that is
            missing.
    """
    try:
        stream, buffers = _split(memoryview(payload).cast("B"), folder)
        return _load(_Restorer(_Stream(stream), namespace, buffers), namespace)
    except RestoreError:
        raise
    except ImportError as exc:
        name = exc.name or str(exc)
        raise RestoreError(
            f"The cell's variables need the module {name!r}, which this image does not have.",
            missing_module=exc.name,
        ) from exc
    except Exception as exc:
        missing = _missing_name(exc)
        if missing is not None:
            raise RestoreError(
                f"A variable of the cell refers to the name {missing!r}, which was not sent.",
                missing_name=missing,
            ) from exc
        raise RestoreError(
            f"The cell's variables could not be restored: {type(exc).__name__}: {exc}"
        ) from exc


def _missing_name(error: BaseException | None) -> str | None:
    """Return the name that a formula lacks: libraries wrap the NameError in errors of their own."""
    for _ in range(20):
        if error is None:
            break
        if isinstance(error, NameError):
            return str(error.name)
        error = error.__cause__ or error.__context__
    return None


def _split(view: memoryview, folder: str | None) -> tuple[memoryview, list[memoryview]]:
    if len(view) < HEADER.size:
        raise RestoreError("The payload is cut off.")
    magic, major, minor, flags, chunk_bytes, body_bytes = HEADER.unpack_from(view)
    if magic != MAGIC:
        raise RestoreError("The payload is of another release of Grid-X.")
    if (major, minor) not in ((0, 0), sys.version_info[:2]):
        raise RestoreError(
            f"The cell was sent from Python {major}.{minor}, and this container runs "
            f"{sys.version_info[0]}.{sys.version_info[1]}: code does not cross minor versions."
        )
    blobs = _Blobs(folder, chunk_bytes)
    body = view[HEADER.size :]
    if flags & BODY_APART:
        body, _ = blobs.take(body_bytes, body)
    elif len(body) != body_bytes:
        raise RestoreError("The payload is cut off.")
    count, stream_bytes = BODY.unpack_from(body)
    sizes = [SIZE.unpack_from(body, BODY.size + i * SIZE.size)[0] for i in range(count)]
    names = body[BODY.size + count * SIZE.size :]
    apart = {}
    for index, size in enumerate(sizes):
        if size & APART:
            apart[index], names = blobs.take(size & ~(READ_ONLY | APART), names)
    if flags & STREAM_APART:
        stream, names = blobs.take(stream_bytes, names)
        at = len(body) - len(names)
    else:
        at = len(body) - len(names)
        stream = body[at : at + stream_bytes]
        at += stream_bytes
    buffers = []
    for index, size in enumerate(sizes):
        piece = apart.get(index)
        if piece is None:
            at += -at % ALIGNMENT
            piece = body[at : at + (size & ~READ_ONLY)]
            at += len(piece)
            if len(piece) != size & ~READ_ONLY:
                raise RestoreError("The payload is cut off.")
        if size & READ_ONLY:
            piece = piece.toreadonly()
        elif piece.readonly:
            piece = memoryview(bytearray(piece))
        buffers.append(piece)
    return stream, buffers


class _Blobs:
    """Joins blobs into memory that is contiguous and writable."""

    def __init__(self, folder: str | None, chunk_bytes: int) -> None:
        self._folder = folder
        self._chunk_bytes = chunk_bytes

    def take(self, size: int, names: memoryview) -> tuple[memoryview, memoryview]:
        """Return ``size`` bytes from the blobs that ``names`` begins with, and the other names."""
        if not size:
            return memoryview(bytearray()), names
        lengths = [self._chunk_bytes] * (size // self._chunk_bytes)
        if size % self._chunk_bytes:
            lengths.append(size % self._chunk_bytes)
        end = len(lengths) * DIGEST_BYTES
        if len(names) < end:
            raise RestoreError("The payload is cut off.")
        digests = [names[at : at + DIGEST_BYTES].hex() for at in range(0, end, DIGEST_BYTES)]
        opened: list[int] = []
        try:
            for digest, length in zip(digests, lengths, strict=True):
                opened.append(self._open(digest, length))
            return self._join(opened, lengths, size), names[end:]
        finally:
            for fd in opened:
                os.close(fd)

    def _open(self, digest: str, length: int) -> int:
        if self._folder is None:
            raise RestoreError("The cell's variables came without their large parts.")
        try:
            fd = os.open(f"{self._folder}/{digest}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise RestoreError(
                f"A part of the cell's variables did not arrive in the sandbox "
                f"({digest[:12]}: {exc.strerror})."
            ) from exc
        found = os.fstat(fd).st_size
        if found != length:
            os.close(fd)
            raise RestoreError(
                f"A part of the cell's variables arrived damaged in the sandbox "
                f"({digest[:12]}: {found} of {length} bytes)."
            )
        return fd

    def _join(self, files: list[int], lengths: list[int], size: int) -> memoryview:
        if size >= _WORTH_MAPPING_BYTES and self._chunk_bytes % mmap.PAGESIZE == 0:
            try:
                return _mapped(files, lengths, size)
            except OSError:
                pass  # a file system that cannot be mapped can still be read
        joined = memoryview(bytearray(size))
        at = 0
        for fd, length in zip(files, lengths, strict=True):
            end = at + length
            while at < end:
                count = os.readv(fd, [joined[at:end]])
                if not count:
                    raise RestoreError("A part of the cell's variables is cut off in the sandbox.")
                at += count
        return joined


def _mapped(files: list[int], lengths: list[int], size: int) -> memoryview:
    """Return the files side by side as one private mapping.

    Raises:
        OSError: they cannot be mapped here.
    """
    if len(files) == 1:
        return memoryview(mmap.mmap(files[0], size, access=mmap.ACCESS_COPY))
    if sys.platform != "linux" or sys.maxsize < 2**32:
        raise OSError("MAP_FIXED is only known of 64-bit Linux.")
    import ctypes

    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    place = ctypes.c_char.from_buffer(region)
    at = ctypes.addressof(place)
    del place
    map_at = ctypes.CDLL(None, use_errno=True).mmap
    map_at.restype = ctypes.c_void_p
    map_at.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    for fd, length in zip(files, lengths, strict=True):
        protection, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED
        if map_at(at, length, protection, kind, fd, 0) != at:
            raise OSError(ctypes.get_errno(), "The blob cannot be mapped.")
        at += length
    return memoryview(region)


class _Stream:
    """What the unpickler reads, without a copy of all of it."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def read(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        return bytes(self._take(size))

    def readinto(self, target: memoryview) -> int:
        """Fill ``target`` with the next bytes; return how many there were."""
        piece = self._take(len(target))
        target[: len(piece)] = piece
        return len(piece)

    def readline(self) -> bytes:
        """Return the bytes up to the next line feed, and with it."""
        end = self._at
        while end < len(self._view) and self._view[end] != 10:
            end += 1
        return bytes(self._take(end + 1 - self._at))

    def _take(self, size: int) -> memoryview:
        piece = self._view[self._at : self._at + size]
        self._at += len(piece)
        return piece


def _load(restorer: _Restorer, namespace: dict[str, Any]) -> set[str]:
    code, submodules, names, definitions, later = restorer.load()
    for module in submodules:
        try:
            importlib.import_module(module)
        except ImportError:
            continue  # the attribute error in the cell says what is missing
    namespace.update(code)
    for name, value in _below_the_namespace(restorer.load, names, namespace):
        namespace[name] = value
    for name, text in definitions:
        exec(compile(text, f"<{name}>", "exec", dont_inherit=True), namespace)  # noqa: S102
    for name, value in _below_the_namespace(restorer.load, later, namespace):
        namespace[name] = value
    return {*code, *names, *later, *(name for name, _ in definitions)}


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
        self, stream: _Stream, namespace: dict[str, Any], buffers: list[memoryview]
    ) -> None:
        super().__init__(stream, buffers=buffers)
        self._helpers: dict[str, Callable[..., object]] = {
            "target_namespace": lambda: namespace,
            "find_defined": functools.partial(_find_defined, namespace),
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


def find_defined(path: str) -> object:
    """Stand in a payload for ``path``, which a definition of the payload makes."""
    raise RestoreError("This payload can only be opened by gridx.ship.restore.restore().")


def _find_defined(namespace: dict[str, Any], path: str) -> object:
    name, *inner = path.split(".")
    value = namespace[name]
    for part in inner:
        value = getattr(value, part)
    return value


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
