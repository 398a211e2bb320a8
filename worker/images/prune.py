"""Removes images of ours that a newer version has replaced and that nothing uses."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .build import lock
from .engine import REFUSALS, Progress, find_image
from .manifest import LABEL, ImageManifest, Kind, minor_of
from .names import image_tag, lean_version, packages_version, runtime_files

_log = logging.getLogger(__name__)

# Whoever has built an image a moment ago is about to start from it.
GRACE_S: Final = 3600.0
_NO_TAG: Final = "<none>:<none>"
_OF_JOBS: Final = (Kind.RUNTIME, Kind.FAMILY, Kind.ENVIRONMENT)


def prune(api: Any, say: Progress, *, grace_s: float = GRACE_S) -> list[str]:
    """Remove tags of ours whose runtime or packages are not today's and that no container uses.

    Bases stay, and so does every image that is not labelled as ours, and the newest of each of
    the lender's own: the worker makes the next one of its list.

    Args:
        api: a low-level docker-py client.
        say: called with one line for each tag that was removed.
        grace_s: how old an image has to be.

    Returns:
        The tags that were removed.
    """
    removed = []
    with lock("image", say, waiting="another process builds an image; waiting for it"):
        try:
            listed = api.images(filters={"label": LABEL})
            live = {entry["ImageID"] for entry in api.containers(all=True)}
        except REFUSALS:
            return []
        files = runtime_files()
        # The newest first: what was built on another goes before that.
        for entry in sorted(listed, key=lambda entry: -int(entry.get("Created") or 0)):
            if entry["Id"] in live or time.time() - int(entry.get("Created") or 0) < grace_s:
                continue
            for tag in _names(entry):
                found = find_image(api, tag)
                kind = entry["Labels"][LABEL]
                if found is None or not _is_old(tag, kind, found.manifest, files):
                    continue
                if kind == Kind.FAMILY and not _has_successor(tag, listed):
                    continue  # what the worker builds the next one from
                try:
                    api.remove_image(tag)
                except REFUSALS as error:  # a container was made of it just now
                    _log.info("an image stays", extra={"action": "prune", "error": str(error)})
                    continue
                say(f"removed {tag}")
                removed.append(tag)
    return removed


def _names(entry: Mapping[str, Any]) -> list[str]:
    """Return an image's tags, or its id where a newer build of ours has taken its tag."""
    tags = [tag for tag in entry.get("RepoTags") or () if tag != _NO_TAG]
    return tags or [str(entry["Id"])]


def _has_successor(tag: str, listed: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a newer image of the lender's own has the same name and Python."""
    stem = tag.rpartition("-")[0] + "-"
    created = {
        name: int(entry.get("Created") or 0)
        for entry in listed
        for name in entry.get("RepoTags") or ()
        if name.startswith(stem)
    }
    return any(when > created[tag] for when in created.values())


def _is_old(tag: str, kind: str, manifest: ImageManifest, files: Mapping[str, bytes]) -> bool:
    if tag.startswith("sha256:"):
        return kind != Kind.BASE
    if not tag.startswith("gridx/"):
        return False  # a name that somebody else gave it
    minor, language = minor_of(manifest.python), manifest.language
    current = image_tag(language, minor, files)
    if kind == Kind.RUNTIME:
        return tag != current
    if kind in _OF_JOBS:
        return not current.endswith(manifest.runtime)
    if kind == Kind.PACKAGES:
        version = packages_version(minor) if language == "python" else lean_version(minor, language)
        return not tag.endswith(version)
    return False
