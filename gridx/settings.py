"""Which coordinator, as whom: defaults < file < environment < arguments.

The file is ``$XDG_CONFIG_HOME/gridx/config.toml`` (``~/.config`` without it), readable by its
owner only, since it may hold a token. Its tables ``[cell]`` and ``[profile.NAME]`` are defaults
of ``%%gridx`` options, which the notebook reads; ``[trust]`` is that of ``gridx.trust``. A token
belongs to the address it was given out by: when another source names another address, the
file's token is left out.
"""

from __future__ import annotations

import dataclasses
import difflib
import getpass
import json
import os
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from .errors import InvalidRequest, SettingsError
from .ids import parse_user_name

DEFAULT_URL: Final = "http://localhost:8081"
DEFAULT_PORT: Final = 8081
ENVIRONMENT: Final = {"url": "GRIDX_URL", "user": "GRIDX_USER", "token": "GRIDX_TOKEN"}
KEYS: Final = tuple(ENVIRONMENT)
TABLES: Final = ("cell", "profile", "trust")
ANOTHER_ADDRESS: Final = "none (the one in the file is for another address)"


@dataclasses.dataclass(frozen=True)
class ConnectionSettings:
    """How this process reaches its coordinator. ``sources`` says where each value came from."""

    url: str
    user: str
    token: str | None = dataclasses.field(default=None, repr=False)
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)
    file: Path = Path()

    @property
    def websocket_url(self) -> str:
        """The address of the client WebSocket."""
        return "ws" + self.url.removeprefix("http") + "/ws/client"


def config_file(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the settings file is, whether it exists or not."""
    home = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home()) / ".config"
    return Path(home) / "gridx" / "config.toml"


def normalise_url(text: str) -> str:
    """Return ``text`` as ``http(s)://host[:port][/prefix]`` without a slash at its end.

    A host without a scheme gets ``http://``; without a port, ``http`` gets 8081.

    Raises:
        SettingsError: it is not such an address.
    """
    address = text.strip()
    if "://" not in address:
        address = f"http://{address}"
    hint = f"Write it as http://HOST:PORT, for example {DEFAULT_URL}."
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as exc:
        raise SettingsError(f"{text!r} is not an address: {exc}.", hint=hint) from None
    if parts.scheme in ("ws", "wss"):
        raise SettingsError(
            f"{text!r} is a WebSocket address.",
            hint="Name the coordinator's HTTP address (port 8081 unless changed); the client"
            " finds its socket by itself.",
        )
    if parts.scheme not in ("http", "https"):
        raise SettingsError(f"{text!r} begins with {parts.scheme}://, not with http://.", hint=hint)
    host = parts.hostname
    if not host or any(char.isspace() for char in parts.netloc):
        raise SettingsError(f"{text!r} names no host.", hint=hint)
    if parts.username is not None or parts.password is not None:
        raise SettingsError(
            "The address holds a user or a password.",
            hint="Leave them out of the address and run `gridx login URL --user NAME`.",
        )
    if parts.query or parts.fragment:
        raise SettingsError(f"{text!r} goes on after its path.", hint=hint)
    if port is None and parts.scheme == "http":
        port = DEFAULT_PORT
    if ":" in host:
        host = f"[{host}]"
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"


def read_file(path: Path) -> dict[str, str]:
    """Return the settings in ``path``; an empty dict when there is no such file.

    Raises:
        SettingsError: the file is not TOML, holds an unknown key or a value that is no text, or
            holds a token that others can read.
    """
    found, mode = _read_toml(path)
    found = {key: value for key, value in found.items() if not _is_table(key, value)}
    for key, value in found.items():
        if key not in KEYS:
            near = difflib.get_close_matches(key, (*KEYS, *TABLES), n=1, cutoff=0.4)
            raise SettingsError(
                f"{path} holds an unknown setting, {key!r}.",
                hint=(f"Did you mean {near[0]!r}? " if near else "")
                + f"The settings are {', '.join(KEYS)}, and the tables [cell] and [profile.NAME].",
            )
        if not isinstance(value, str):
            raise SettingsError(
                f"{path}: {key} must be text, not {type(value).__name__}.",
                hint=f'Write it in quotes: {key} = "…".',
            )
    if "token" in found and mode & 0o077 and os.name == "posix":  # elsewhere modes say nothing
        raise SettingsError(
            f"{path} holds a token and other users may read it.",
            hint=f"Run `chmod 600 {path}`.",
        )
    return found


def read_tables(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tables of ``path`` by their names; empty ones when there are none.

    Raises:
        SettingsError: the file is not TOML.
    """
    found, _ = _read_toml(path)
    return {name: found[name] if isinstance(found.get(name), dict) else {} for name in TABLES}


def _is_table(key: str, value: object) -> bool:
    return key in TABLES and isinstance(value, dict)


def _read_toml(path: Path) -> tuple[dict[str, Any], int]:
    """Return what is in ``path`` and the file's mode."""
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            return tomllib.load(stream), mode
    except FileNotFoundError:
        return {}, 0
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(
            f"{path} is not TOML: {exc}.",
            hint="Correct it, or delete it and run `gridx login` again.",
        ) from None
    except OSError as exc:
        raise SettingsError(f"{path} cannot be read: {exc.strerror}.") from None


def load(
    url: str | None = None,
    user: str | None = None,
    token: str | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
) -> ConnectionSettings:
    """Return the settings of this process, from every source.

    Args:
        url, user, token: what the caller was given; they win.

    Raises:
        SettingsError: a value, or the file, is wrong. The sentence names its source.
    """
    path = config_file(environ)
    layers: list[tuple[str, Mapping[str, str | None]]] = [
        ("arguments", {"url": url, "user": user, "token": token}),
        ("environment", {key: environ.get(name) for key, name in ENVIRONMENT.items()}),
        (f"file {path}", read_file(path)),
        ("default", {"url": DEFAULT_URL, "user": None, "token": None}),
    ]
    values: dict[str, str | None] = {}
    sources: dict[str, str] = {}
    for key in KEYS:
        for source, layer in layers:
            if value := layer.get(key):
                values[key] = value
                sources[key] = (
                    f"{source} ({ENVIRONMENT[key]})" if source == "environment" else source
                )
                break
    address = normalise_url(values["url"] or DEFAULT_URL)
    saved_token = sources.get("token", "").startswith("file ")
    if saved_token and normalise_url(layers[2][1].get("url") or DEFAULT_URL) != address:
        values["token"] = None
        sources["token"] = ANOTHER_ADDRESS
    name = values.get("user")
    if not name:
        name, sources["user"] = _login_name(), "operating system's login name"
    try:
        checked = str(parse_user_name(name))
    except InvalidRequest as exc:
        raise SettingsError(
            f"{exc.message} It came from the {sources['user']}.", hint=exc.hint
        ) from None
    sources.setdefault("token", "none")
    return ConnectionSettings(
        url=address,
        user=checked,
        token=values.get("token"),
        sources=sources,
        file=path,
    )


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        raise SettingsError(
            "This machine does not say who you are.",
            hint="Set GRIDX_USER, or pass --user NAME.",
        ) from None


def save(
    *, url: str, user: str, token: str | None = None, environ: Mapping[str, str] = os.environ
) -> Path:
    """Write the settings file, readable by its owner only, in one step; return its path.

    Tables that stand in the file stay as they are.
    """
    path = config_file(environ)
    values = {"url": normalise_url(url), "user": str(parse_user_name(user)), "token": token}
    # A JSON string is a TOML basic string, once DEL is escaped too.
    text = "".join(
        f"{key} = {json.dumps(value, ensure_ascii=True)}\n".replace("\x7f", "\\u007f")
        for key, value in values.items()
        if value
    )
    write_file(path, text + _tables_text(path))
    return path


def write_file(path: Path, text: str) -> None:
    """Write the settings file ``path``, readable by its owner only, in one step.

    Raises:
        SettingsError: it cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".config-")  # made 0600
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
            os.replace(name, path)  # noqa: PTH105 (the name is a string here)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise SettingsError(
            f"{path} cannot be written: {exc.strerror}.",
            hint="Set GRIDX_URL, GRIDX_USER and GRIDX_TOKEN instead.",
        ) from None


def _tables_text(path: Path) -> str:
    """Return the file from its first table on; settings stand before it, as TOML wants it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError):
        return ""
    at = next((n for n, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    rest = "".join(lines[at:])
    return f"\n{rest}" if rest else ""
