"""Images of the lender's own: the default one with more packages, under a name that users ask for.

gridx-worker image --name torch --add requirements.txt      builds gridx/torch:3.11-...
gridx-worker --images torch                                 announces it
%%grid --image torch                                        runs on it
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from gridx.errors import InvalidRequest, SandboxError
from gridx.requirements import parse_requirements

from .build import ContextFile, build, lock
from .engine import REFUSALS, Progress, find_image, inspect, labels_of
from .ensure import BUILDING, ensure_image
from .manifest import ImageInfo, Kind, minor_of
from .names import recipe, version_of
from .resolve import Limits, Resolved, fetched, resolve
from .unpack import unpacked

FAMILY_DIR: Final = "/opt/gridx/family"  # before the default packages on the child's path
ADDED_LABEL: Final = "gridx.added"  # what the lender listed, to build it again on a new runtime
RESERVED: Final = frozenset({"python", "bash", "node", "base", "packages", "env"})

# The lender's own choice on his own machine: caps against mistakes, not against him.
LIMITS: Final = Limits(timeout_s=1800.0, download_bytes=16 << 30, memory_bytes=4 << 30)
BUILD_TIMEOUT_S: Final = 1800.0


def checked_name(name: str) -> str:
    """Return ``name`` when an image of the lender's own may have it.

    Raises:
        SandboxError: it may not.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name) or name in RESERVED:
        raise SandboxError(
            f"{name!r} is no name for an image of your own.",
            hint="Take small letters, digits and hyphens, such as torch; not "
            + ", ".join(sorted(RESERVED))
            + ".",
        )
    return name


def read_list(path: Path) -> tuple[str, ...]:
    """Return the requirements in a file, one a line, comments left out.

    Raises:
        SandboxError: it cannot be read, or a line is more than a name with versions.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        listed = [bare for line in lines if (bare := line.partition("#")[0].strip())]
        return parse_requirements(listed)
    except InvalidRequest as error:
        raise SandboxError(f"{path}: {error.message}", hint=error.hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SandboxError(
            f"{path} cannot be read: {error}.", hint="Name a list of packages, one a line: --add."
        ) from error


def build_family(
    api: Any,
    name: str,
    added: Sequence[str],
    minor: str,
    say: Progress,
) -> ImageInfo:
    """Return the image ``name``: the default one of ``minor`` with ``added``, built when absent.

    Raises:
        SandboxError: something in the list cannot be installed; pip's last lines say what.
    """
    checked_name(name)
    base = ensure_image(api, minor, progress=say)
    with lock("image", say, waiting=BUILDING):
        say(f"resolving {len(added)} packages for {name}")
        with resolve(added, base.manifest, limits=LIMITS) as found:
            return _built(api, name, added, base, found, say)


def _built(
    api: Any,
    name: str,
    added: Sequence[str],
    base: ImageInfo,
    found: Resolved,
    say: Progress,
) -> ImageInfo:
    say(f"downloading {len(found.missing)} wheels")
    wheels = fetched(found)
    parts = [("base", base.id.encode()), *((w.filename, w.sha256.encode()) for w in wheels)]
    tag = f"gridx/{name}:{minor_of(base.manifest.python)}-{version_of(parts)}"
    if there := find_image(api, tag):
        return there
    say(f"installing {len(wheels)} wheels: {tag}")
    built = build(
        api,
        tag,
        files=[
            ContextFile("Dockerfile", recipe("environment.Dockerfile")),
            ContextFile("more/.empty"),
            *unpacked((wheel.path for wheel in wheels), under="more"),
        ],
        manifest=msgspec.structs.replace(
            base.manifest, packages={**base.manifest.packages, **found.versions}
        ),
        kind=Kind.FAMILY,
        labels={ADDED_LABEL: msgspec.json.encode(list(added)).decode()},
        buildargs={"BASE": base.id, "FOLDER": FAMILY_DIR},
        timeout_s=BUILD_TIMEOUT_S,
    )
    say(f"ready: {tag}")
    return built


def ensure_family(api: Any, name: str, minors: Sequence[str], say: Progress) -> list[ImageInfo]:
    """Return the image ``name`` for each of ``minors`` that it was built for; where only one on an
    older runtime is there, it is built again from the list that it was made of.

    Raises:
        SandboxError: there is none; the hint has the command that builds it.
    """
    checked_name(name)
    found = []
    for minor in minors:
        newest = next(iter(_built_before(api, name, minor)), None)
        if newest is None:
            continue
        base = ensure_image(api, minor, progress=say)
        if newest.manifest.runtime == base.manifest.runtime:
            found.append(newest)
            continue
        listed = labels_of(inspect(api, newest.tag) or {}).get(ADDED_LABEL, "[]")
        added = msgspec.json.decode(listed, type=list[str])
        found.append(build_family(api, name, added, minor, say))
    if not found:
        raise SandboxError(
            f"This engine has no image {name!r} for Python {' or '.join(minors)}.",
            hint=f"Build it: `gridx-worker image --name {name} --add requirements.txt`.",
        )
    return found


def _built_before(api: Any, name: str, minor: str) -> Iterable[ImageInfo]:
    """Yield the images ``name`` for ``minor``, the newest first."""
    try:
        listed = api.images(name=f"gridx/{name}", filters={"label": "gridx.image=" + Kind.FAMILY})
    except REFUSALS as error:
        raise SandboxError(f"The engine does not list its images: {error}") from error
    for entry in sorted(listed, key=lambda entry: -int(entry.get("Created") or 0)):
        for tag in entry.get("RepoTags") or ():
            if tag.startswith(f"gridx/{name}:{minor}-") and (there := find_image(api, tag)):
                yield there
