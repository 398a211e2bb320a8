"""Defaults of ``%%gridx`` options: ``%gridx set`` > ``%config GridX`` > environment > file.

An option of the cell goes before all of them. A profile, a named set of options in the file,
stands right below the layer that names it: ``--profile big --cpus 1`` has one core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from traitlets import Any as AnyTrait
from traitlets import TraitError, validate
from traitlets.config import Configurable

from gridx.errors import SettingsError
from gridx.settings import config_file, read_tables

from .options import SETTABLE, nearest, parse_setting, usage_error

_TRAITS: Final = {key.replace("-", "_"): key for key in SETTABLE}
_VARIABLES: Final = {key: option.variable for key, option in SETTABLE.items()}


class _Checked(Configurable):
    """Refuses a value as the option itself would."""

    @validate(*_TRAITS)
    def _valid(self, proposal: Any) -> Any:
        key, value = _TRAITS[proposal["trait"].name], proposal["value"]
        if value is None:
            return None
        try:
            parse_setting(key, _text(value))
        except ValueError as exc:
            raise TraitError(str(exc)) from None
        return value


# The name is what `%config GridX.cpus = 2` says; one trait for each option that has a default.
_make_class: Final[Any] = type(Configurable)
GridX: Final[type[Configurable]] = _make_class(
    "GridX",
    (_Checked,),
    {
        "__doc__": "Defaults of the options of %%gridx; an option of the cell goes before them.",
        **{
            name: AnyTrait(None, allow_none=True, help=SETTABLE[key].help).tag(config=True)
            for name, key in _TRAITS.items()
        },
    },
)


class Defaults:
    """The layers below the options of a cell, in one kernel.

    Args:
        config: what ``%config GridX`` changes.
        environ: the environment.
    """

    def __init__(self, config: Configurable, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = environ
        # Noted as they change: this is asked at each cell, and traits are slow to read.
        self._configured = {key: getattr(config, name) for name, key in _TRAITS.items()}
        config.observe(self._note_config, names=list(_TRAITS))
        self._set: dict[str, str] = {}
        self._tables: dict[str, dict[str, Any]] = {}
        self._read_at: tuple[int, int] | None = None
        self._path = config_file(environ)
        self._path_of = self._homes()

    def set(self, key: str, text: str) -> None:
        """Set a default for this kernel. Raises UsageError."""
        try:
            parse_setting(key, text)
        except ValueError as exc:
            raise usage_error(str(exc), _USAGE, "") from None
        if key == "profile":
            self._require_profile(text)
        self._set[key] = text

    def unset(self, key: str) -> None:
        """Forget what ``set`` has set."""
        self._set.pop(key, None)

    def profiles(self) -> list[str]:
        """Return the names of the profiles in the file."""
        return sorted(self._file()["profile"])

    def of(self, profile: str | None) -> dict[str, Any]:
        """Return the value of each field that has a default, for a cell's ``--profile``.

        Raises:
            UsageError: a setting, or the profile, is wrong; names where it stands.
        """
        values: dict[str, Any] = {}
        for source, settings in self._layers(profile):
            for key, text in settings.items():
                try:
                    field, value = parse_setting(key, text)
                except ValueError as exc:
                    raise usage_error(f"{source}: {exc}", _USAGE, "") from None
                values.setdefault(field, value)
        return values

    def rows(self) -> list[tuple[str, str, str]]:
        """Return key, text and source of every setting; an empty source is the default."""
        found: dict[str, tuple[str, str]] = {}
        for source, settings in self._layers(None):
            for key, text in settings.items():
                found.setdefault(key.replace("_", "-"), (text, source))
        return [(key, *found.get(key, ("", ""))) for key in SETTABLE]

    def _layers(self, profile: str | None) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Yield each layer with its settings as text, the strongest first."""
        tables = self._file()
        environ = self._environ
        variables = {
            key: environ[variable] for key, variable in _VARIABLES.items() if variable in environ
        }
        layers: list[tuple[str, Mapping[str, Any]]] = [
            ("--profile", {} if profile is None else {"profile": profile}),
            ("%gridx set", self._set),
            ("%config GridX", self._configured),
            ("environment", variables),
            (f"{self._path} [cell]", tables["cell"]),
        ]
        has_profile = False
        for source, settings in layers:
            given = {
                key: _text(value) for key, value in settings.items() if value not in (None, "")
            }
            if given:
                yield source, given
            name = given.get("profile")
            if name is not None and not has_profile:
                has_profile = True
                self._require_profile(name)
                options = tables["profile"][name].items()
                yield f"[profile.{name}]", {key: _text(value) for key, value in options}

    def _note_config(self, change: Any) -> None:
        self._configured[_TRAITS[change["name"]]] = change["new"]

    def _homes(self) -> tuple[str | None, str | None]:
        return self._environ.get("XDG_CONFIG_HOME"), self._environ.get("HOME")

    def _require_profile(self, name: str) -> None:
        profiles = self._file()["profile"]
        if not isinstance(profiles.get(name), dict):
            path = self._path
            raise usage_error(
                f"There is no profile {name!r} in {path}.{nearest(name, profiles)}",
                f"Write it there: [profile.{name}] and below it, for example, cpus = 4.",
                "",
            )

    def _file(self) -> dict[str, dict[str, Any]]:
        """Return the file's tables, read again when the file has changed."""
        if self._homes() != self._path_of:
            self._path, self._path_of = config_file(self._environ), self._homes()
        path = self._path
        try:
            stat = path.stat()
            at = (stat.st_mtime_ns, stat.st_size)
        except OSError:
            at = (0, 0)
        if at != self._read_at:
            try:
                self._tables = read_tables(path)
            except SettingsError as exc:
                raise usage_error(exc.message, exc.hint, "") from None
            self._read_at = at
        return self._tables


_USAGE: Final = "Usage: %gridx set KEY VALUE; %gridx set alone shows every setting."


def _text(value: object) -> str:
    if isinstance(value, list | tuple):  # pip = ["polars >= 1.20", "tqdm"]
        return " ".join("".join(str(word).split()) for word in value)
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
