"""Which wheels a list of packages comes to, and those wheels: pip, shut in as far as the host can.

The index and its credentials are the lender's, out of his own configuration of pip. pip runs in a
throw-away folder, starts no program (pip_alone.py), and as nobody where this process is root's.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec
from packaging.requirements import Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from gridx.errors import SandboxError
from gridx.resources import GIB, format_bytes

from .manifest import ImageManifest, minor_of
from .wheels import target_options

NOBODY: Final = 65534
_LOOK_EVERY_S: Final = 0.1
_LOG_READ_BYTES: Final = 64 * 1024
_SOURCE: Final = (Path(__file__).parent / "pip_alone.py").read_text(encoding="utf-8")
# What of the lender's configuration says where packages are; the rest is not ours to use.
_WHERE: Final = frozenset(
    {
        *("index-url", "extra-index-url", "find-links", "no-index", "proxy", "cert"),
        *("client-cert", "trusted-host", "timeout", "default-timeout", "retries", "constraint"),
    }
)
_OF_THE_NETWORK: Final = (
    *("http_proxy", "https_proxy", "no_proxy", "all_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)
_NAMING_HOSTS: Final = ("URL", "LINKS", "HOST", "PROXY", "_proxy")
_CONFLICT: Final = re.compile(r"ResolutionImpossible|conflicting dependencies")

_UNREACHABLE: Final = re.compile(
    r"NewConnectionError|ConnectTimeoutError|NameResolutionError|ProxyError|SSLError|Read timed out"
)


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What resolving and downloading together may use."""

    timeout_s: float = 300.0
    download_bytes: int = GIB
    memory_bytes: int = 2 * GIB


class PipFailed(Exception):
    """pip did not do it: a sentence for the user, and its log as it is, for the lender."""

    def __init__(self, sentence: str, log: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.log = log


class Pin(NamedTuple):
    """One wheel that the list comes to."""

    name: str
    version: str
    sha256: str  # "" where the index says none


class Wheel(NamedTuple):
    """One wheel on this machine's disk."""

    filename: str
    sha256: str
    path: Path


class Resolved(NamedTuple):
    """What a list comes to on one image; valid while its folder exists."""

    versions: Mapping[str, str]  # all of it
    missing: tuple[Pin, ...]  # what the image does not have in that version
    pip: _Pip


@contextmanager
def resolve(
    requirements: Sequence[str], manifest: ImageManifest, *, limits: Limits
) -> Iterator[Resolved]:
    """Find what ``requirements`` come to on an image, of wheels alone.

    What the image has stays as it is, unless the list asks for another version of it, or cannot
    be had otherwise.

    Raises:
        PipFailed: there is no such package or version, no wheel, or they conflict.
        SandboxError: the index does not answer, or this worker has no pip.
    """
    if find_spec("pip") is None:
        raise SandboxError(
            "This worker's Python has no pip, so it installs no packages.",
            hint="Its lender can run `python -m ensurepip` there, or say --pip off.",
        )
    with tempfile.TemporaryDirectory(prefix="gridx-pip-") as scratch:
        pip = _Pip(Path(scratch), manifest, limits)
        try:
            pins = pip.resolve(requirements, kept(requirements, manifest.packages))
        except PipFailed as error:
            if _UNREACHABLE.search(error.log):
                raise SandboxError(
                    "The package index of this worker does not answer.",
                    hint="Its lender can try: python -m pip download tqdm.",
                ) from None
            if not _CONFLICT.search(error.log):
                raise
            pins = pip.resolve(requirements, [])
        missing = tuple(pin for pin in pins if manifest.packages.get(pin.name) != pin.version)
        yield Resolved({pin.name: pin.version for pin in pins}, missing, pip)


def kept(requirements: Sequence[str], packages: Mapping[str, str]) -> list[str]:
    """Return the constraints that leave an image as it is, where ``requirements`` let it be.

    >>> kept(["numpy>=2", "six==1.16"], {"numpy": "2.4.6", "six": "1.17.0", "tqdm": "4.70.1"})
    ['numpy==2.4.6', 'tqdm==4.70.1']
    """
    asked = {str(canonicalize_name(one.name)): one for one in map(Requirement, requirements)}
    return [
        f"{name}=={version}"
        for name, version in packages.items()
        if name not in asked or asked[name].specifier.contains(version, prereleases=True)
    ]


def fetched(resolved: Resolved) -> list[Wheel]:
    """Return the wheels that are missing, downloaded now, in the order of their names.

    Raises:
        PipFailed: they are more than the limits allow, or not what the index said.
    """
    return resolved.pip.download(resolved.missing) if resolved.missing else []


class _Pip:
    """pip in one throw-away folder."""

    def __init__(self, scratch: Path, manifest: ImageManifest, limits: Limits) -> None:
        self._scratch = scratch
        self._limits = limits
        self._until_s = time.monotonic() + limits.timeout_s
        self._options = target_options(
            minor_of(manifest.python), manifest.platform.rpartition("/")[2]
        )
        self._environment = {
            **_network(),
            **settings(),
            "PATH": os.defpath,
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "LANG": "C.UTF-8",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_KEYRING_PROVIDER": "disabled",
        }
        self._user = NOBODY if _can_be_nobody() else None
        if self._user is not None:
            os.chown(scratch, self._user, self._user)

    def resolve(self, requirements: Sequence[str], kept: Sequence[str]) -> list[Pin]:
        report = self._scratch / "report.json"
        self._run(
            "install",
            *("--dry-run", "--ignore-installed", "--target", str(self._scratch / "none")),
            *("--report", str(report)),
            *("--constraint", self._list("kept.txt", kept)),
            *requirements,  # names with versions, so that none of them is an option
        )
        try:
            with report.open("rb") as file:
                said = json.loads(file.read(16 << 20))
            return sorted(_pin(entry) for entry in said["install"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PipFailed("pip did not say what the packages come to.", str(error)) from error

    def download(self, pins: Sequence[Pin]) -> list[Wheel]:
        folder = self._scratch / "wheels"
        self._run(
            "download",
            *("--no-deps", "--dest", str(folder)),
            *("--requirement", self._list("pins.txt", [f"{p.name}=={p.version}" for p in pins])),
        )
        wanted = {(pin.name, pin.version): pin.sha256 for pin in pins}
        wheels = []
        for path in sorted(folder.iterdir()):
            name, version = _name_of(path.name)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            expected = wanted.pop((name, version), None)
            if expected is None or expected not in ("", sha256):
                raise PipFailed(f"The index sent another file than it had named for {name}.")
            wheels.append(Wheel(path.name, sha256, path))
        if wanted:
            raise PipFailed(f"The index sent no wheel of {min(wanted)[0]}.")
        return wheels

    def _list(self, name: str, lines: Sequence[str]) -> str:
        path = self._scratch / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding="ascii")
        if self._user is not None:
            os.chown(path, self._user, self._user)
        return str(path)

    def _run(self, command: str, *words: str) -> None:
        limits = self._limits
        with (self._scratch / "pip.log").open("w+b") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-c", _SOURCE),
                    *(str(limits.memory_bytes), str(limits.download_bytes), command),
                    *("--no-input", "--no-color", "--no-cache-dir"),
                    *("--disable-pip-version-check", "--progress-bar", "off"),
                    *self._options,
                    *words,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._scratch,
                env=self._environment,
                start_new_session=True,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else (),
            )
            try:
                self._watch(process)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
            if process.returncode != 0:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _LOG_READ_BYTES))
                said = log.read().decode(errors="replace")
                raise PipFailed("These packages cannot be installed.", said)

    def _watch(self, process: subprocess.Popen[bytes]) -> None:
        while True:
            try:
                process.wait(_LOOK_EVERY_S)
                return
            except subprocess.TimeoutExpired:
                pass
            if time.monotonic() > self._until_s:
                raise PipFailed(
                    "Resolving and downloading the packages took more than"
                    f" {self._limits.timeout_s:.0f} s."
                )
            if _size_of(self._scratch) > self._limits.download_bytes:
                raise PipFailed(
                    f"The packages are more than {format_bytes(self._limits.download_bytes)}"
                    " to download."
                )


def _size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:  # pip has removed it
            pass
    return total


def _pin(entry: Mapping[str, Any]) -> Pin:
    name = str(canonicalize_name(entry["metadata"]["name"]))
    where = entry["download_info"]
    filename = unquote(urlsplit(where["url"]).path.rpartition("/")[2])
    # A dependency that names its file by an address is not what the user listed.
    if entry.get("is_direct") or _name_of(filename)[0] != name:
        raise PipFailed(f"{name} is no wheel of the package index.")
    hashes = where.get("archive_info", {}).get("hashes", {})
    return Pin(name, str(entry["metadata"]["version"]), str(hashes.get("sha256", "")))


def _name_of(filename: str) -> tuple[str, str]:
    try:
        name, version, _, _ = parse_wheel_filename(filename)
    except InvalidWheelFilename:
        raise PipFailed(f"{filename[:100]!a} is no wheel.") from None
    return str(name), str(version)


# ---------------------------------------------------------------- the lender's configuration


def settings() -> dict[str, str]:
    """Return where the lender's pip finds packages, as variables of pip's environment."""
    try:
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_settings(listed)


def parse_settings(listed: str) -> dict[str, str]:
    """Return the variables for what ``pip config list`` prints.

    >>> parse_settings("global.index-url='https://pypi.test/simple'")
    {'PIP_INDEX_URL': 'https://pypi.test/simple'}
    """
    found: dict[str, tuple[int, str]] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        rank = (
            (":env:", "download", "install", "global").index(section)
            if section in (":env:", "download", "install", "global")
            else None
        )
        if rank is None or option not in _WHERE:
            continue
        try:
            text = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            continue
        name = "PIP_" + option.upper().replace("-", "_")
        if name not in found or rank < found[name][0]:
            found[name] = (rank, " ".join(text.split()))
    return {name: text for name, (_, text) in sorted(found.items())}


def hosts_in(variables: Mapping[str, str]) -> set[str]:
    """Return the names of hosts and accounts in these variables: a user must not see them."""
    found = set()
    named = [value for name, value in variables.items() if name.endswith(_NAMING_HOSTS)]
    for word in " ".join(named).split():
        address = urlsplit(word if "://" in word else f"//{word}")
        try:
            found |= {address.hostname, address.username, address.password}
        except ValueError:
            continue
    return {word for word in found if word}


def _network() -> dict[str, str]:
    return {name: os.environ[name] for name in _OF_THE_NETWORK if name in os.environ}


def secrets() -> set[str]:
    """Return what in pip's log would tell about the lender's machine."""
    uname = os.uname().nodename
    account = os.environ.get("USER") or os.environ.get("LOGNAME") or ""
    return {*hosts_in({**settings(), **_network()}), uname, account}


@cache
def _can_be_nobody() -> bool:
    """Return whether this process may start pip as a user who owns nothing."""
    if os.geteuid() != 0:
        return False
    command = [sys.executable, "-I", "-c", "import pip._internal.cli.main"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=NOBODY,
            group=NOBODY,
            extra_groups=(),
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):  # its folder is closed to others
        return False
    return done.returncode == 0
