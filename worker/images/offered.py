"""The images that a worker with its settings offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gridx.errors import SandboxError

from .build import progress_to_stderr
from .engine import REFUSALS, Progress, find_image
from .ensure import ensure_image, order
from .families import ensure_family
from .manifest import ImageInfo
from .names import current_python_minor, image_tag, runtime_files
from .prune import prune


def ensure_images(
    api: Any,
    *,
    pythons: Sequence[str] = (),
    languages: Sequence[str] = ("python", "bash"),
    families: Sequence[str] = (),
    rebuild: bool = False,
    progress: Progress | None = None,
) -> tuple[ImageInfo, ...]:
    """Return the images that a worker with these settings offers, built now where absent.

    After a build, images of older versions that nothing uses are removed.

    Args:
        api: a low-level docker-py client, used by this thread only.
        pythons: minor versions, the default one first; this process's alone by default.
        languages: "python", "bash", "node". Without "python" the others come first.
        families: names of the lender's own images, for each of ``pythons`` that has one.
        rebuild: build the last layer even where the image is there.
        progress: called with one line a step; by default the line goes to stderr.

    Returns:
        The default image first.

    Raises:
        SandboxError: one could not be built; it names the step and ends with the log's last lines.
    """
    say = progress or progress_to_stderr()
    minors = list(dict.fromkeys(pythons)) or [current_python_minor()]
    before = _tags(api)
    found = []
    for language in sorted(dict.fromkeys(languages), key=order):
        for minor in minors if language == "python" else minors[:1]:
            found.append(ensure_image(api, minor, language=language, rebuild=rebuild, progress=say))
    for name in families:
        found += ensure_family(api, name, minors, say)
    if {info.tag for info in found} - before:
        prune(api, say)
    return tuple(found)


def _tags(api: Any) -> set[str]:
    try:
        return {tag for entry in api.images() for tag in entry.get("RepoTags") or ()}
    except REFUSALS as error:
        raise SandboxError(f"The engine does not list its images: {error}") from error


def find_images(
    api: Any, *, pythons: Sequence[str] = (), languages: Sequence[str] = ("python", "bash")
) -> tuple[ImageInfo, ...]:
    """Return those of the images for these settings that the engine has."""
    minors = list(dict.fromkeys(pythons)) or [current_python_minor()]
    files = runtime_files()
    tags = [
        image_tag(language, minor, files)
        for language in sorted(dict.fromkeys(languages), key=order)
        for minor in (minors if language == "python" else minors[:1])
    ]
    return tuple(there for tag in tags if (there := find_image(api, tag)))
