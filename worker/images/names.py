"""The names of images: a tag changes with every file that goes into its image."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import blake3

import gridx
from gridx.errors import SandboxError

RUNTIME_DIR: Final = Path(__file__).parent.parent / "runtime"
CORE_DIR: Final = Path(gridx.__file__).parent


def current_python_minor() -> str:
    """Return the minor version of this process, "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def checked_minor(python_minor: str) -> str:
    """Return ``python_minor`` when it is one.

    Raises:
        SandboxError: it is not, such as "3" or "3.11.2".
    """
    if not re.fullmatch(r"3\.\d{1,2}", python_minor):
        raise SandboxError(
            f"{python_minor!r} is not a Python minor version.", hint="Write it as 3.11."
        )
    return python_minor


def version_of(parts: Iterable[tuple[str, bytes]]) -> str:
    """Return 12 hexadecimal digits that change when a name or a content changes (BLAKE3)."""
    digest = blake3.blake3()
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def recipe(name: str) -> bytes:
    """Return a list or a Dockerfile of ``runtime/`` without its comments, which change nothing."""
    lines = (RUNTIME_DIR / name).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if line.strip() and line[0] != "#").encode()


def packages_version(python_minor: str) -> str:
    """Return the version of the packages layer: its list, its recipe and its Python."""
    names = ("requirements.txt", "packages.Dockerfile")
    return version_of([("python", python_minor.encode()), *((n, recipe(n)) for n in names)])


def lean_version(python_minor: str, language: str) -> str:
    """Return the version of a layer for a language that is not Python."""
    return version_of(
        [
            ("python", python_minor.encode()),
            ("language", language.encode()),
            ("packages", "\n".join(lean_requirements()).encode()),
            ("lean.Dockerfile", recipe("lean.Dockerfile")),
        ]
    )


def lean_requirements() -> list[str]:
    """Return what the supervisor itself needs, pinned as in the whole list."""
    lines = recipe("requirements.txt").decode().split()
    return [line for line in lines if line.startswith("msgspec==")]


def runtime_files() -> dict[str, bytes]:
    """Return the recipe and every file copied into the image, by its path in the context."""
    files = {f"lib/{name}": path.read_bytes() for name, path in _lib_files()}
    return {"Dockerfile": recipe("Dockerfile"), **files}


def _lib_files() -> Iterator[tuple[str, Path]]:
    """Yield (path below /opt/gridx/lib, file) for what runs inside the container."""
    for path in _files(CORE_DIR, ["*.py", "py.typed"]):
        yield f"gridx/{path.relative_to(CORE_DIR).as_posix()}", path
    for path in _files(RUNTIME_DIR, ["*.py"]):
        yield f"gridx_runtime/{path.relative_to(RUNTIME_DIR).as_posix()}", path


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    return sorted(path for path in found if "__pycache__" not in path.parts)


def runtime_version(layer: str, files: Mapping[str, bytes]) -> str:
    """Return the version of an image: the version of the layer below, and its files."""
    return version_of([("packages", layer.encode()), *files.items()])


def image_tag(language: str, python_minor: str, files: Mapping[str, bytes]) -> str:
    """Return the tag of the image for ``language`` with these files on a Python of that minor."""
    if language == "python":
        version = runtime_version(packages_version(python_minor), files)
        return f"gridx/python:{python_minor}-{version}"
    return f"gridx/{language}:{runtime_version(lean_version(python_minor, language), files)}"


def version_in(tag: str) -> str:
    """Return the version with which ``tag`` ends.

    >>> version_in("gridx/python:3.11-0a1b"), version_in("gridx/bash:0a1b")
    ('0a1b', '0a1b')
    """
    return tag.rpartition(":")[2].rpartition("-")[2]


def default_image_tag(python_minor: str | None = None) -> str:
    """Return the tag of the image for ``python_minor`` ("3.11"; this process's by default).

    It changes with the package list, a recipe or any file copied into the image. The base is no
    part of it: which base is at hand is known only to an engine. The manifest names it by its id.
    """
    return image_tag(
        "python", checked_minor(python_minor or current_python_minor()), runtime_files()
    )
