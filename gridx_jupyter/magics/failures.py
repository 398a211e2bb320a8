"""Errors as a notebook shows them: a sentence for ours, the cell's own lines for the user's.

IPython asks an exception for ``_render_traceback_`` before it formats one itself; so the frames
of this extension, which only carried the error, never stand in a traceback.
"""

from __future__ import annotations

import linecache
import traceback
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gridx.display import clean_text
from gridx.errors import GridXError
from gridx.remote_error import RemoteError

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell


def shown_as_sentence(error: GridXError) -> GridXError:
    """Return ``error``, which will be shown as class, sentence and hint."""
    error.message, error.hint = clean_text(error.message), clean_text(error.hint)
    error.args = (error.message,)
    lines = [f"{type(error).__name__}: {error.message}", *filter(None, [error.hint])]
    _render_as(error, lines)
    return error


def shown_as_name(error: BaseException) -> None:
    """Let ``error``, an interrupt or a time-out here, be shown as its class and text alone."""
    _render_as(error, [f"{type(error).__name__}: {error}".removesuffix(": ")])


def shown_at_its_lines(error: BaseException, shell: InteractiveShell) -> BaseException:
    """Return ``error``, which will be shown with the frames that it has now and no others.

    Syntax errors and exception groups are formatted by IPython in ways of its own, with every
    frame; they come back inside an exception of the same name that renders itself.
    """
    frames = error.__traceback__
    if isinstance(error, SyntaxError):
        if not isinstance(error, RemoteError):
            error, frames = _as_the_shell_says(error, shell), None  # found before it was sent
        entries: Any = traceback.extract_tb(frames) if frames is not None else None
        lines = shell.SyntaxTB.structured_traceback(type(error), error, entries)
        return _stand_in(error, lines)
    if isinstance(error, BaseExceptionGroup):
        return _stand_in(error, "".join(traceback.format_exception(error)).splitlines())
    _render_as(error, _Frames(error, frames, shell))
    return error


def _as_the_shell_says(error: SyntaxError, shell: InteractiveShell) -> SyntaxError:
    """Return the error that this shell has for the cell of ``error``, in its own words."""
    lines = linecache.getlines(error.filename or "")
    at = next((n for n, line in enumerate(lines, 1) if line.startswith("%%")), 0)
    text = "\n" * at + shell.transform_cell("".join(lines[at:]))
    try:
        shell.compile.ast_parse(text, filename=error.filename or "<unknown>")
    except SyntaxError as exc:
        return exc.with_traceback(None)
    return error


class _Frames:
    """Renders an exception from a traceback of before it was raised here."""

    def __init__(
        self, error: BaseException, frames: TracebackType | None, shell: InteractiveShell
    ) -> None:
        self._error = error
        self._frames = frames
        self._shell = shell
        # As they came: raising it here may set them anew.
        self._chain = error.__cause__, error.__context__, error.__suppress_context__

    def __call__(self) -> list[str]:
        kind = type(self._error)
        error = self._error
        error.__cause__, error.__context__, error.__suppress_context__ = self._chain
        try:
            lines: list[str] = self._shell.InteractiveTB.structured_traceback(
                kind, self._error, self._frames, tb_offset=0
            )
        except Exception:  # IPython's formatter meets frames here that no file has
            plain = traceback.TracebackException(kind, self._error, self._frames)
            lines = "".join(plain.format()).splitlines()
        return lines


def _render_as(error: BaseException, rendering: list[str] | _Frames) -> None:
    render = rendering if callable(rendering) else lambda: rendering
    error._render_traceback_ = render  # type: ignore[attr-defined]  # IPython's own hook


def _stand_in(error: BaseException, lines: list[str]) -> BaseException:
    name = type(error).__name__

    def text(_self: object) -> str:
        return str(error)

    body: dict[str, Any] = {"__str__": text, "__module__": type(error).__module__}
    stand_in: BaseException = type(name, (Exception,), body)(str(error))
    _render_as(stand_in, lines)
    return stand_in
