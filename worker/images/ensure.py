"""Finds one image of a language, or builds it where the engine lacks it."""

from __future__ import annotations

import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from gridx.errors import SandboxError

from .base import chosen_base, ensure_base, python_of
from .build import ContextFile, build, lock, progress_to_stderr
from .copied import find_node, program_files, with_libraries
from .engine import (
    Progress,
    answer_of,
    file_of,
    find_image,
    inspect,
    pull,
    registry_answers,
)
from .manifest import ImageInfo, ImageManifest, Kind
from .names import (
    checked_minor,
    current_python_minor,
    image_tag,
    lean_requirements,
    lean_version,
    packages_version,
    recipe,
    runtime_files,
    version_in,
)
from .wheels import fetch, packages_in, site_files, wheel_machine

LANGUAGES: Final = ("python", "bash", "node")
NODE_IMAGES: Final = ("node:22-slim", "node:20-slim")
BUILDING: Final = "another process builds an image; waiting for it"


def order(language: str) -> int:
    """Return the place of ``language`` among those that a worker offers.

    Raises:
        SandboxError: it is none of them.
    """
    if language not in LANGUAGES:
        raise SandboxError(
            f"{language!r} is not a language of the grid.", hint=f"Choose: {', '.join(LANGUAGES)}."
        )
    return LANGUAGES.index(language)


def ensure_image(
    api: Any,
    python_minor: str | None = None,
    *,
    language: str = "python",
    rebuild: bool = False,
    progress: Progress | None = None,
) -> ImageInfo:
    """Return the image of ``language``, built now when this engine lacks it.

    Blocking: seconds when only the runtime changed, minutes the first time. One build at a time
    on a machine; a second caller waits and finds the result.

    Args:
        api: a low-level docker-py client, used by this thread only.
        python_minor: "3.11", of the supervisor too; this process's by default.
        language: "python", "bash" or "node".
        rebuild: build the last layer even where the image is there.
        progress: called with one line a step; by default the line goes to stderr.

    Raises:
        SandboxError: a step failed; it names the step and ends with the log's last lines.
    """
    order(language)
    minor = checked_minor(python_minor or current_python_minor())
    # Read once: what is named is what is built, even while somebody edits the files.
    files = runtime_files()
    tag = image_tag(language, minor, files)
    if not rebuild and (there := _current(api, tag, minor)):
        return there
    say = progress or progress_to_stderr()
    with lock("image", say, waiting=BUILDING):
        if not rebuild and (there := _current(api, tag, minor)):
            return there
        layer = _ensure_layer(api, language, minor, say)
        say(f"adding the runtime: {tag}")
        built = build(
            api,
            tag,
            files=[ContextFile(name, content) for name, content in files.items()],
            manifest=msgspec.structs.replace(layer.manifest, runtime=version_in(tag)),
            kind=Kind.RUNTIME,
            buildargs={"PACKAGES": layer.tag, "LANGUAGE": language},
            nocache=rebuild,
        )
    say(f"ready: {tag}")
    return built


def _current(api: Any, tag: str, minor: str) -> ImageInfo | None:
    """Return the image ``tag`` unless the lender has chosen another base since."""
    there = find_image(api, tag)
    if there is not None and chosen_base(api, minor) in ("", there.manifest.base):
        return there
    return None


def _ensure_layer(api: Any, language: str, minor: str, say: Progress) -> ImageInfo:
    """Return the image below the runtime: the base with what the language needs."""
    is_python = language == "python"
    tag = (
        f"gridx/packages:{minor}-{packages_version(minor)}"
        if is_python
        else f"gridx/packages:{language}-{lean_version(minor, language)}"
    )
    if there := _current(api, tag, minor):
        return there
    base = ensure_base(api, minor, say)
    machine = str(base.get("Architecture") or platform.machine())
    with tempfile.TemporaryDirectory(prefix="gridx-image-") as scratch:
        site = Path(scratch) / "site"
        if is_python:
            say("fetching the wheels of worker/runtime/requirements.txt")
            fetch(site, recipe("requirements.txt").decode().split(), minor, machine)
            packages = packages_in(site)
            dockerfile, program = "packages.Dockerfile", _Program()
            say(f"compiling {len(packages)} packages")
        else:
            fetch(site, lean_requirements(), minor, machine)
            program = _bash(api, base) if language == "bash" else _node(api, base, say)
            packages = {language: program.version}
            dockerfile = "lean.Dockerfile"
        manifest = ImageManifest(
            python=python_of(api, str(base["Id"]), minor),
            platform=f"linux/{wheel_machine(machine)}",
            packages=packages,
            base=str(base["Id"]),
            language=language,
        )
        return build(
            api,
            tag,
            files=chain(
                [ContextFile("Dockerfile", recipe(dockerfile))], program.files, site_files(site)
            ),
            manifest=manifest,
            kind=Kind.PACKAGES,
            buildargs={"BASE": str(base["Id"])},
        )


class _Program(NamedTuple):
    """What runs scripts of a language, where it is not in the base, and its version."""

    version: str = ""
    files: Sequence[ContextFile] = ()


def _bash(api: Any, base: Mapping[str, Any]) -> _Program:
    code, said = answer_of(api, str(base["Id"]), ["bash", "--version"])
    version = re.search(r"version (\d+[.\d]*)", said)
    if code != 0 or version is None:
        raise SandboxError(
            "The base image has no bash.", hint="Choose one of Debian or Ubuntu with --base."
        )
    return _Program(version[1], [ContextFile("tree/opt/gridx/language", b"bash\n")])


def _node(api: Any, base: Mapping[str, Any], say: Progress) -> _Program:
    """Return this machine's node, or the one in a registry's image."""
    mark = ContextFile("tree/opt/gridx/language", b"node\n")
    if own := find_node():
        say(f"copying node {own.version} of this machine")
        files = with_libraries(api, str(base["Id"]), program_files("node", own))
        return _Program(own.version, [mark, *files])
    for name in NODE_IMAGES:
        if inspect(api, name) or (registry_answers(api, name) and pull(api, name)):
            code, said = answer_of(api, name, ["node", "--version"])
            if code == 0:
                say(f"copying node {said} of {name}")
                program = file_of(api, name, "/usr/local/bin/node")
                node = ContextFile("tree/usr/local/bin/node", program, is_executable=True)
                return _Program(said.removeprefix("v"), [mark, node])
    raise SandboxError(
        "There is no node for an image: this machine has none, and no registry answers.",
        hint="Install node (`apt-get install -y nodejs`), or load an image with `docker load`:"
        f" {NODE_IMAGES[0]}.",
    )
