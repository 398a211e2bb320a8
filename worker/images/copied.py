"""Programs of this machine that are copied into a base image: a Python of another minor, node.

An interpreter is found by running it: it says its version, where its library lies and which of
the modules that need a shared library it can import. What it links to and the base image lacks
is copied beside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from .build import ContextFile
from .engine import answer_of

_PROBE_TIMEOUT_S: Final = 20.0
_PROBE: Final = """
import importlib, json, os, platform, sys, sysconfig
names = []
for name in ("zlib", "ssl", "sqlite3", "bz2", "lzma", "ctypes", "hashlib", "uuid", "readline",
             "decimal", "multiprocessing.synchronize", "curses", "pyexpat", "zoneinfo"):
    try:
        importlib.import_module(name)
        names.append(name)
    except ImportError:
        pass
print(json.dumps({
    "version": platform.python_version(),
    "machine": platform.machine(),
    "executable": os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable),
    "library": sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}),
    "prefix": sys.base_prefix,
    "modules": names,
    "is_usual": sys.implementation.name == "cpython" and sys.platform == "linux"
                and not sys.abiflags and not sysconfig.get_config_var("Py_GIL_DISABLED"),
}))
"""
_LEFT_OUT_OF_LIBRARY: Final = re.compile(
    r"(^|/)(__pycache__|tests?|idle_test)(/|$)"
    r"|^(site-packages|dist-packages|idlelib|tkinter|turtledemo|lib2to3|ensurepip)(/|$)"
    r"|^config-[^/]*(/|$)"
    r"|^lib-dynload/(_tkinter|_test|_ctypes_test|xxlimited)"
    r"|\.a$"
)
_LINKED: Final = re.compile(r"^\s*(\S+) => (/\S+)", re.MULTILINE)
# The C library and its parts belong to the base: two of them in one process do not work.
_OF_THE_BASE: Final = re.compile(r"^(ld-|lib(c|m|dl|rt|pthread|util|resolv|nsl|anl)\.so)")


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """A Python of this machine, as it describes itself."""

    version: str
    machine: str
    executable: str
    library: str
    prefix: str
    modules: tuple[str, ...]
    is_usual: bool  # CPython for Linux, neither a debug build nor one without the GIL


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A program that is one file and the libraries that it links to."""

    version: str
    path: str


def find_interpreter(minor: str) -> Interpreter | None:
    """Return this machine's Python of that minor version, the newest first; None without."""
    found = [there for path in _candidates(minor) if (there := _ask(path, minor))]
    return max(found, key=lambda there: _sortable(there.version), default=None)


def _candidates(minor: str) -> list[Path]:
    name = f"python{minor}"
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or home / ".local/share/uv/python")
    on_path = shutil.which(name)
    paths = [
        *([Path(on_path)] if on_path else []),
        *pyenv.glob(f"versions/{minor}.*/bin/{name}"),
        *uv.glob(f"cpython-{minor}.*/bin/{name}"),
        *Path("/usr/local/bin").glob(name),
        *Path("/opt").glob(f"*/bin/{name}"),
    ]
    return list(dict.fromkeys(paths))


def _ask(path: Path, minor: str) -> Interpreter | None:
    try:
        done = subprocess.run(
            [str(path), "-I", "-c", _PROBE],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
        said = msgspec.convert(json.loads(done.stdout), Interpreter, strict=False)
    except (OSError, subprocess.SubprocessError, ValueError, msgspec.ValidationError):
        return None
    is_it = said.is_usual and said.version.startswith(minor + ".")
    return said if is_it and Path(said.library, "os.py").is_file() else None


def _sortable(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def interpreter_files(interpreter: Interpreter) -> list[ContextFile]:
    """Return the files of ``interpreter`` below tree/, without tests, caches and packages."""
    name = "python" + ".".join(interpreter.version.split(".")[:2])
    program = f"/usr/local/bin/{name}"
    files = [
        _copy(f"tree{program}", Path(interpreter.executable), is_executable=True),
        *(
            ContextFile(f"tree{link}", link=program)
            for link in ("/usr/bin/python3", "/usr/local/bin/python3", "/usr/local/bin/python")
        ),
    ]
    library = Path(interpreter.library)
    for path in sorted(library.rglob("*")):
        below = path.relative_to(library).as_posix()
        if path.is_file() and not _LEFT_OUT_OF_LIBRARY.search(below):
            file = _copy(f"tree/usr/local/lib/{name}/{below}", path)
            if path.name.startswith("_sysconfigdata"):
                # It says where the interpreter was built: a folder of the lender's.
                shown = file.content.replace(interpreter.prefix.encode(), b"/usr/local")
                file = file._replace(content=shown)
            files.append(file)
    return [*files, *_libraries(_binaries(interpreter))]


def _binaries(interpreter: Interpreter) -> Iterator[Path]:
    yield Path(interpreter.executable)
    library = Path(interpreter.library)
    for path in library.glob("lib-dynload/*.so"):
        if not _LEFT_OUT_OF_LIBRARY.search(path.relative_to(library).as_posix()):
            yield path


_NODE_MODULE: Final = re.compile(rb"/usr/share/nodejs/[\w./-]+\.js")


def find_node() -> Program | None:
    """Return this machine's node; None without."""
    path = shutil.which("node")
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, "-p", "JSON.stringify([process.versions.node, process.execPath])"],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
        version, real = msgspec.json.decode(done.stdout, type=tuple[str, str])
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError):
        return None
    return Program(version=version, path=real)


def program_files(name: str, program: Program) -> list[ContextFile]:
    """Return ``program`` as /usr/local/bin/NAME below tree/, and its libraries."""
    path = Path(program.path)
    file = _copy(f"tree/usr/local/bin/{name}", path, is_executable=True)
    return [file, *_libraries([path]), *_modules_beside(path)]


def _modules_beside(program: Path) -> list[ContextFile]:
    """Return the modules of its own that Debian's node reads from files: its library names them."""
    named: set[str] = set()
    for binary in (program, *linked(_ldd(program)).values()):
        if binary == program or binary.name.startswith("libnode"):
            named |= {found.decode() for found in _NODE_MODULE.findall(binary.read_bytes())}
    return [_copy(f"tree{path}", Path(path)) for path in sorted(named) if Path(path).is_file()]


def _libraries(binaries: Iterable[Path]) -> list[ContextFile]:
    """Return the shared libraries that ``binaries`` link to, in tree/usr/local/lib."""
    found: dict[str, Path] = {}
    for binary in binaries:
        found |= linked(_ldd(binary))
    return [_copy(f"tree/usr/local/lib/{name}", path) for name, path in sorted(found.items())]


def _ldd(binary: Path) -> str:
    try:
        return subprocess.run(
            ["ldd", str(binary)], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):  # a static program, or not one of this machine's
        return ""


def linked(said: str) -> dict[str, Path]:
    """Return the libraries that ``ldd`` names, those of the C library left out."""
    return {
        name: Path(path) for name, path in _LINKED.findall(said) if not _OF_THE_BASE.match(name)
    }


def with_libraries(api: Any, base: str, files: Sequence[ContextFile]) -> list[ContextFile]:
    """Return ``files`` without the shared libraries that the image ``base`` has itself."""
    _, said = answer_of(api, base, ["/sbin/ldconfig", "-p"])
    has = set(re.findall(r"^\s+(\S+\.so\S*) ", said, re.MULTILINE))
    folder = "tree/usr/local/lib/"
    return [
        file
        for file in files
        if not (file.name.startswith(folder) and file.name[len(folder) :] in has)
    ]


def _copy(name: str, path: Path, *, is_executable: bool = False) -> ContextFile:
    return ContextFile(name, path.read_bytes(), is_executable)
