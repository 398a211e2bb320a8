"""The base images: what the lender chose, python:3.x-slim, or a minimal Debian tree."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gridx.errors import SandboxError

from .build import ContextFile, build, run_logged
from .copied import find_interpreter, interpreter_files, with_libraries
from .engine import (
    REFUSALS,
    Progress,
    answer_of,
    failed,
    inspect,
    pull,
    registry_answers,
)
from .manifest import LABEL, ImageManifest, Kind, minor_of
from .names import recipe
from .wheels import wheel_machine

DEBOOTSTRAP_TIMEOUT_S: Final = 900.0

SUITES: Final[Mapping[tuple[str, str], str]] = {
    # (distribution, Python minor) -> the release whose own python3 that is
    ("debian", "3.11"): "bookworm",
    ("debian", "3.13"): "trixie",
    ("ubuntu", "3.12"): "noble",
}

_IN_THE_TREE_FOR_NOTHING: Final = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log",
)


def chosen_name(minor: str) -> str:
    """Return the tag under which the lender's choice of a base is kept."""
    return f"gridx/base:chosen-{minor}"


def choose_base(api: Any, minor: str, name: str, say: Progress) -> None:
    """Make ``name`` the base of the images for ``minor`` from now on; "default" takes it back.

    Raises:
        SandboxError: the engine does not have it and cannot pull it, or its Python is another.
    """
    if name == "default":
        if inspect(api, chosen_name(minor)) is not None:
            api.remove_image(chosen_name(minor))
        return
    found = inspect(api, name)
    if found is None:
        say(f"pulling {name}")
        if not pull(api, name) or (found := inspect(api, name)) is None:
            raise SandboxError(
                f"The engine does not have the image {name} and cannot pull it.",
                hint=f"Load it with `docker load`, then name it again: --base {name}.",
            )
    python_of(api, str(found["Id"]), minor)
    repository, _, tag = chosen_name(minor).partition(":")
    api.tag(str(found["Id"]), repository, tag)


def chosen_base(api: Any, minor: str) -> str:
    """Return the id of the base that the lender chose; "" when he chose none."""
    found = inspect(api, chosen_name(minor))
    return "" if found is None else str(found["Id"])


def ensure_base(api: Any, minor: str, say: Progress) -> dict[str, Any]:
    """Return the engine's description of the base image, pulled or made when absent.

    Raises:
        SandboxError: there is no way to it here; the hint names those that remain.
    """
    slim = f"python:{minor}-slim"
    for name in (chosen_name(minor), slim):
        if there := inspect(api, name):
            return there
    if registry_answers(api, slim):
        say(f"pulling {slim}")
        if pull(api, slim) and (there := inspect(api, slim)):
            return there
        say(f"{slim} could not be pulled; a minimal Debian tree does as well")
    distribution, mirrors = _apt_sources()
    suite = SUITES.get((distribution, minor))
    if suite is not None:
        return _ensure_bootstrapped(api, suite, mirrors, say)
    return _ensure_copied(api, minor, distribution, mirrors, say)


def _ensure_copied(
    api: Any, minor: str, distribution: str, mirrors: Mapping[str, str], say: Progress
) -> dict[str, Any]:
    """Return a base whose Python is the machine's own of that minor, copied in."""
    own = [python for (name, python) in SUITES if name == distribution]
    tree = _own_suite(distribution)
    interpreter = find_interpreter(minor) if tree else None
    if tree is None or interpreter is None:
        raise SandboxError(
            f"No registry answers, so python:{minor}-slim cannot be pulled;"
            f" {distribution or 'this system'} has no release with Python {minor} to make it from,"
            f" and this machine has no Python {minor} to copy in.",
            hint=(
                f"Use Python {' or '.join(own)} instead (--python {own[0]}), install Python {minor}"
                f" with pyenv or uv, or load python:{minor}-slim with `docker load`."
                if own
                else f"Let the engine reach a registry, or load python:{minor}-slim with "
                "`docker load`."
            ),
        )
    base = _ensure_bootstrapped(api, tree, mirrors, say)
    name = f"gridx/base:{tree}-python{interpreter.version}"
    there = inspect(api, name)
    # Made on another tree than today's: not the same base any more.
    if there is not None and (there.get("Config") or {}).get("Labels", {}).get("gridx.base") == str(
        base["Id"]
    ):
        return there
    say(f"copying Python {interpreter.version} of this machine into {tree}")
    files = with_libraries(api, str(base["Id"]), interpreter_files(interpreter))
    build(
        api,
        name,
        files=[ContextFile("Dockerfile", recipe("copied.Dockerfile")), *files],
        manifest=ImageManifest(
            python=interpreter.version,
            platform=f"linux/{wheel_machine(interpreter.machine)}",
            packages={},
            base=str(base["Id"]),
        ),
        kind=Kind.BASE,
        labels={"gridx.base": str(base["Id"])},
        buildargs={"BASE": str(base["Id"])},
    )
    modules = ", ".join(interpreter.modules)
    code, said = answer_of(api, name, ["python3", "-I", "-c", f"import {modules}"])
    if code != 0:
        raise failed(
            f"Python {interpreter.version} of this machine does not work in a {tree} container.",
            said.splitlines()[-3:],
            hint=f"Install another Python {minor} with pyenv or uv, or load python:{minor}-slim"
            " with `docker load`.",
        )
    built = inspect(api, name)
    assert built is not None  # it has just answered
    return built


def _own_suite(distribution: str) -> str | None:
    """Return the release whose C library is nearest to this machine's: its own, where it is one
    that a tree can be made of."""
    known = [suite for (name, _), suite in SUITES.items() if name == distribution]
    try:
        codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        codename = ""
    return codename if codename in known else (known[-1] if known else None)


def _ensure_bootstrapped(
    api: Any, suite: str, mirrors: Mapping[str, str], say: Progress
) -> dict[str, Any]:
    name = f"gridx/base:{suite}"
    if there := inspect(api, name):
        return there
    if os.geteuid() != 0:
        raise SandboxError(
            f"No registry answers, and making a {suite} tree needs root.",
            hint="Run `sudo gridx-worker image` once, or let the engine reach a registry.",
        )
    if shutil.which("debootstrap") is None:
        raise SandboxError(
            "No registry answers, and debootstrap is not installed.",
            hint="Run `apt-get install -y debootstrap`, or let the engine reach a registry.",
        )
    mirror = mirrors.get(suite) or next(iter(mirrors.values()))
    with tempfile.TemporaryDirectory(prefix="gridx-base-") as scratch:
        tree = Path(scratch) / "tree"
        say(f"no registry answers; unpacking a minimal {suite} with its Python (about 35 s)")
        run_logged(
            [
                "debootstrap",
                "--variant=minbase",
                "--include=python3,tzdata",
                suite,
                str(tree),
                mirror,
            ],
            timeout_s=DEBOOTSTRAP_TIMEOUT_S,
            what=f"Unpacking {suite}",
            hint="Run `apt-get update` and look whether apt can reach its mirror.",
        )
        for folder in _IN_THE_TREE_FOR_NOTHING:
            shutil.rmtree(tree / folder, ignore_errors=True)
        say(f"importing it as {name}")
        _import_tree(api, tree, name)
    there = inspect(api, name)
    if there is None:
        raise SandboxError(f"The engine imported {name} but does not have it.")
    return there


def _import_tree(api: Any, tree: Path, name: str) -> None:
    repository, _, tag = name.partition(":")
    with tempfile.TemporaryFile(dir=tree.parent) as archive:
        run_logged(
            ["tar", "-C", str(tree), "--numeric-owner", "--exclude=./proc/*", "-c", "."],
            timeout_s=DEBOOTSTRAP_TIMEOUT_S,
            what="Packing the base image",
            stdout=archive,
        )
        archive.seek(0)
        # As an iterator: docker-py announces chunks, and requests sends them only for one.
        pieces = iter(lambda: archive.read(1 << 20), b"")
        try:
            answer = api.import_image_from_stream(
                pieces, repository=repository, tag=tag, changes=[f"LABEL {LABEL}={Kind.BASE}"]
            )
        except REFUSALS as error:
            raise failed(f"The engine did not import {name}: {error}", ()) from error
    # The engine answers 200 and reports a failure in the stream.
    if '"error"' in str(answer):
        raise failed(f"The engine did not import {name}.", [str(answer)[-500:]])


def _apt_sources() -> tuple[str, dict[str, str]]:
    """Return the distribution's id and, by release name, the mirror that apt itself uses."""
    try:
        distribution = platform.freedesktop_os_release().get("ID", "")
        listed = subprocess.run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(RELEASE) $(COMPONENT) $(REPO_URI)",
                "Created-By: Packages",
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "", {}
    mirrors = _main_mirrors(listed)
    return (distribution, mirrors) if mirrors else ("", {})


def _main_mirrors(listed: str) -> dict[str, str]:
    """Return the first mirror of each release's ``main`` from lines "RELEASE COMPONENT URI"."""
    mirrors: dict[str, str] = {}
    for line in listed.splitlines():
        release, component, uri = line.split(" ", 2)
        if component == "main":
            mirrors.setdefault(release, uri)
    return mirrors


def python_of(api: Any, image: str, minor: str) -> str:
    """Return the full version of the image's python3.

    Raises:
        SandboxError: it has none, or one of another minor version.
    """
    code, answer = answer_of(
        api, image, ["python3", "-I", "-c", "import platform; print(platform.python_version())"]
    )
    if code != 0 or minor_of(answer) != minor:
        raise SandboxError(
            f"The base image answers {answer[-200:]!r} where Python {minor} was expected.",
            hint="Remove that image with `docker rmi` and run `gridx-worker image` again.",
        )
    return answer
