"""Modules that lie beside the notebook: they travel as files, because no image has them.

A package travels whole, with its resources, so that relative imports, ``inspect`` and
``importlib.resources`` find there what they find here. What travels is what is on disk now; when
the kernel has loaded something older, a note says so. Editable installs are user code too.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import site
import struct
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import CaptureError
from ..resources import format_bytes
from .import_statements import imports_of, module_names
from .withheld import is_secret_name

_PYTHON_SUFFIXES: Final = (".py", ".pyi")
_KEY_SUFFIXES: Final = (".pem", ".key", ".p12", ".pfx", ".kdbx")
_MAX_RESOURCE_BYTES: Final = 8 << 20
_MAX_PACKAGE_BYTES: Final = 64 << 20
_MAX_FILES: Final = 5_000
# Ours are in the image, or of no use there; a notebook is no module.
_NOT_THEIRS: Final = frozenset(
    {"gridx", "gridx_jupyter", "coordinator", "worker", "__main__", "__mp_main__"}
)


def _installed_places() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    places = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    places |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(sorted({f"{Path(place).resolve()}{os.sep}" for place in places}))


_INSTALLED: Final = _installed_places()


@dataclass(frozen=True, slots=True)
class ModuleFile:
    """One file of a module, below a folder of ``sys.path``."""

    path: str
    data: bytes


@dataclass(frozen=True, slots=True)
class UserModules:
    """Every file that the user's modules need, and what the user should know about them."""

    roots: frozenset[str] = frozenset()
    """Top-level names of the modules that travel."""
    files: tuple[ModuleFile, ...] = ()
    notes: tuple[str, ...] = ()
    imports: frozenset[str] = frozenset()
    """Modules that they import anywhere."""
    sure_imports: frozenset[str] = frozenset()
    """Those of them that are surely imported with what the cell surely imports."""


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that was read before, as long as its stamp is the same."""

    stamp: tuple[int, int]
    data: bytes
    imports: frozenset[str]
    sure_imports: frozenset[str]
    code: types.CodeType | None


_sources: dict[str, _Source] = {}
_loaded: dict[str, tuple[object, tuple[int, int], bool]] = {}
"""Spec of each loaded module that travelled, the stamp of its file when it first did, and whether
the file was another one than was loaded already then."""
_nobody: set[str] = set()
"""Roots that were looked at and are nobody's own code: looked at with each cell otherwise."""


def collect(modules: Iterable[str], *, surely: Iterable[str] = ()) -> UserModules:
    """Return the files of those of ``modules`` that are the user's own, and of what they import.

    Args:
        modules: dotted names.
        surely: those of them that will be imported for sure.

    Raises:
        CaptureError: a module is too large to travel, or its file is gone.
    """
    todo = sorted({name.partition(".")[0] for name in modules})
    done: dict[str, list[ModuleFile]] = {}
    notes: list[str] = []
    imports: set[str] = set()
    entries: dict[str, frozenset[str]] = {}
    while todo:
        root = todo.pop()
        if root in done or _is_known_not_to_be_theirs(root):
            continue
        place = _find(root)
        if place is None:
            continue
        taken = _Taken(root)
        done[root] = taken.files
        for path in place:
            taken.take(path)
        notes += taken.all_notes()
        imports |= taken.imports
        entries[root] = taken.entry_imports
        todo += sorted({name.partition(".")[0] for name in taken.imports})
    files = [file for root in sorted(done) for file in done[root]]
    sure = _surely_imported(surely, entries)
    return UserModules(frozenset(done), tuple(files), tuple(notes), frozenset(imports), sure)


def _surely_imported(
    modules: Iterable[str], entries: Mapping[str, frozenset[str]]
) -> frozenset[str]:
    """Return what the first files of ``modules`` import for sure, and theirs, and so on."""
    todo = {name.partition(".")[0] for name in modules} & entries.keys()
    found: set[str] = set()
    seen: set[str] = set()
    while todo:
        root = todo.pop()
        seen.add(root)
        found |= entries[root]
        todo |= ({name.partition(".")[0] for name in entries[root]} & entries.keys()) - seen
    return frozenset(found)


def is_user_module(name: str) -> bool:
    """Return whether the module ``name`` would travel as files."""
    root = name.partition(".")[0]
    return not _is_known_not_to_be_theirs(root) and _find(root) is not None


def _is_known_not_to_be_theirs(root: str) -> bool:
    return root in _nobody or root in _NOT_THEIRS or root in sys.stdlib_module_names


def _find(root: str) -> list[Path] | None:
    """Return the file or folders of the top-level module ``root`` when it is the user's own."""
    loaded = sys.modules.get(root)
    try:
        spec = getattr(loaded, "__spec__", None) or importlib.util.find_spec(root)
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None:
        return None
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    places = folders or ([Path(spec.origin)] if spec.has_location and spec.origin else [])
    if not places or any(_is_installed(place) for place in places):
        _nobody.add(root)
        return None
    gone = [place for place in places if not place.exists()]
    if gone:
        raise CaptureError(
            f"The module {root!r} is loaded here, but {gone[0]} is gone, so it cannot be sent.",
            hint="Bring the file back, or put its code into a cell.",
            name=root,
            path=str(gone[0]),
        )
    return places


def _is_installed(place: Path) -> bool:
    text = f"{place.resolve()}{os.sep}"
    return (
        text.startswith(_INSTALLED)
        or f"{os.sep}site-packages{os.sep}" in text
        or f"{os.sep}dist-packages{os.sep}" in text
    )


class _Taken:
    """Gathers the files of one top-level module."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.files: list[ModuleFile] = []
        self.imports: set[str] = set()
        self.entry_imports: frozenset[str] = frozenset()
        self._bytes = 0
        self._large: list[str] = []
        self._secret: list[str] = []
        self._changed: list[str] = []

    def take(self, place: Path) -> None:
        """Add ``place``: a single file, or the folder of a package."""
        if place.is_file():
            self._add(place, place.name, self.root)
            return
        for path in _walk(place):
            inside = path.relative_to(place)
            parts = [self.root, *inside.with_suffix("").parts]
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self._add(path, f"{self.root}/{inside.as_posix()}", name)

    def _add(self, path: Path, target: str, module: str) -> None:
        stat = path.stat()
        is_python = path.suffix in _PYTHON_SUFFIXES
        if not is_python and (is_secret_name(path.stem) or path.suffix in _KEY_SUFFIXES):
            self._secret.append(target)
            return
        if not is_python and stat.st_size > _MAX_RESOURCE_BYTES:
            self._large.append(f"{target} ({format_bytes(stat.st_size)})")
            return
        self._bytes += stat.st_size
        if self._bytes > _MAX_PACKAGE_BYTES or len(self.files) >= _MAX_FILES:
            raise CaptureError(
                f"The package {self.root!r} beside the notebook is too large to be sent: more "
                f"than {format_bytes(_MAX_PACKAGE_BYTES)} or {_MAX_FILES:,} files.",
                hint="Move the data out of the package, or the code that the cell needs into a "
                "module of its own.",
                name=self.root,
                path=str(path),
            )
        source = _read(path, (stat.st_mtime_ns, stat.st_size))
        self.files.append(ModuleFile(target, source.data))
        self.imports |= source.imports
        if module == self.root:
            self.entry_imports = source.sure_imports
        loaded = sys.modules.get(module)
        if is_python and loaded is not None and _differs(loaded, path, source):
            self._changed.append(target)

    def all_notes(self) -> Iterator[str]:
        """Yield a sentence for what stays here, and for what is newer than what is loaded."""
        for target in self._changed:
            yield (
                f"{target} has changed since it was imported here; the cell runs it as it is on "
                f"disk now."
            )
        if self._large:
            more = f" and {len(self._large) - 3} more" if len(self._large) > 3 else ""
            yield (
                f"Large files of the package {self.root} stay here: "
                f"{', '.join(self._large[:3])}{more}."
            )
        if self._secret:
            yield (
                f"Files of the package {self.root} that look like secrets stay here: "
                f"{', '.join(self._secret[:3])}."
            )


def _walk(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in ("__pycache__", "node_modules")
            and not (Path(here) / name / "pyvenv.cfg").exists()
        )
        for name in sorted(names):
            path = Path(here) / name
            if not name.startswith(".") and path.suffix != ".pyc" and path.is_file():
                yield path


def _read(path: Path, stamp: tuple[int, int]) -> _Source:
    known = _sources.get(str(path))
    if known is not None and known.stamp == stamp:
        return known
    data, imports, sure, code = path.read_bytes(), frozenset[str](), frozenset[str](), None
    if path.suffix == ".py":
        try:
            tree = ast.parse(data)
            imports, sure = frozenset(_imports_of(tree)), frozenset(imports_of(tree).sure)
            code = compile(tree, str(path), "exec", dont_inherit=True)
        except (SyntaxError, ValueError):
            pass  # the cell shows the error when it imports the file
    source = _sources[str(path)] = _Source(stamp, data, imports, sure, code)
    return source


def _imports_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from module_names(node)


def _differs(module: types.ModuleType, path: Path, source: _Source) -> bool:
    """Return whether what is loaded is not what stands in the file.

    The functions of the module are compared with those of the file; the stamp of the file with
    that of the first time, and with the one that the interpreter has put into the compiled file.
    """
    if source.code is None:
        return False
    spec = module.__spec__
    first = _loaded.get(module.__name__)
    if first is None or first[0] is not spec:  # reloading makes a new spec
        differs = _is_other_code(module, source.code) or _is_older(path, source)
        first = _loaded[module.__name__] = (spec, source.stamp, differs)
    return first[2] or first[1] != source.stamp


def _is_other_code(module: types.ModuleType, code: types.CodeType) -> bool:
    now = {inner.co_qualname: inner for inner in _codes(code)}
    return any(
        now.get(function.__code__.co_qualname) != function.__code__
        for function in _functions(module)
    )


def _is_older(path: Path, source: _Source) -> bool:
    try:
        head = Path(importlib.util.cache_from_source(str(path))).read_bytes()[:16]
        flags, mtime_s, size = struct.unpack("<4xIII", head)
    except (OSError, struct.error, NotImplementedError):
        return False
    mtime_ns, bytes_now = source.stamp
    is_timed = not flags
    return is_timed and (mtime_s, size) != (mtime_ns // 10**9 & 0xFFFFFFFF, bytes_now & 0xFFFFFFFF)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _codes(constant)


def _functions(module: types.ModuleType) -> Iterator[types.FunctionType]:
    holders: list[dict[str, object]] = [vars(module)]
    holders += [
        dict(vars(value))
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    for holder in holders:
        for value in list(holder.values()):
            value = getattr(value, "__func__", value)
            if (
                isinstance(value, types.FunctionType)
                and value.__module__ == module.__name__
                and value.__code__.co_filename == getattr(module, "__file__", None)
            ):
                yield value
