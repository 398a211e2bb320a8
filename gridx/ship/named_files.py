"""Files that the magics of a cell run: they travel with it, and what they bind is expected."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Final

from ..resources import format_bytes
from .analysis import Analysis, analyze
from .user_modules import ModuleFile

_MAX_FILE_BYTES: Final = 8 << 20


class NamedFiles:
    """The files that ``%run`` names, below the current folder."""

    def __init__(self, analysis: Analysis) -> None:
        """Read the files of ``analysis`` and add to it what they import, bind and read."""
        self.files: list[ModuleFile] = []
        self.notes: list[str] = []
        for name in sorted(analysis.files):
            path = PurePath(name)
            if path.is_absolute() or ".." in path.parts:
                self.notes.append(
                    f"{name} stays here: only files below the notebook's folder travel."
                )
                continue
            self._take(Path(name), analysis)

    def _take(self, path: Path, analysis: Analysis) -> None:
        try:
            data = path.read_bytes()
        except OSError:
            return  # the magic itself says that there is no such file
        if len(data) > _MAX_FILE_BYTES:
            self.notes.append(f"{path} stays here: it is {format_bytes(len(data))}.")
            return
        self.files.append(ModuleFile(path.as_posix(), data))
        if path.suffix != ".py":
            analysis.dynamic.add(f"%run {path}")
            return
        try:
            script = analyze(data.decode())
        except (SyntaxError, UnicodeDecodeError):
            return  # shown where it runs
        analysis.writes |= script.writes
        analysis.imports |= script.imports
        analysis.optional_imports |= script.optional_imports
        if "%run -i" in analysis.dynamic:
            analysis.soft |= script.reads
