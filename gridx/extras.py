"""A part that was not installed: what to type, instead of a traceback."""

from __future__ import annotations

from typing import Final

from .errors import SettingsError

_OURS: Final = ("gridx", "coordinator", "worker", "gridx_jupyter")


def explain_missing(error: ModuleNotFoundError, extra: str) -> SettingsError:
    """Return what to tell somebody who starts a program without its packages.

    Args:
        extra: the extra of the distribution that brings them: "coordinator" or "worker".

    Raises:
        ModuleNotFoundError: a module of ours is missing; that is a fault, not a choice.
    """
    name = (error.name or "").partition(".")[0]
    if not name or name in _OURS:
        raise error
    return SettingsError(
        f"The {extra} needs the package {name}, which is not installed.",
        hint=f"In a clone, type: pip install '.[{extra}]'",
    )
