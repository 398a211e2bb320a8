"""What an image holds, as its label says it, and how the worker announces it."""

from __future__ import annotations

from typing import Final

import msgspec

from gridx.resources import Image

LABEL: Final = "gridx.image"  # what an image of ours is: a ``Kind``
MANIFEST_LABEL: Final = "gridx.manifest"


class Kind:
    """The values of ``LABEL``."""

    BASE: Final = "base"
    PACKAGES: Final = "packages"
    RUNTIME: Final = "python"  # whatever its language: what a sandbox starts from
    FAMILY: Final = "family"
    ENVIRONMENT: Final = "environment"
    PROBE: Final = "probe"  # of a container that only answers a question


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an image holds. Packages map normalised distribution names (PEP 503) to versions;
    where the language is not Python, its program's name to its version."""

    python: str  # "3.11.2", of the supervisor too
    platform: str  # "linux/x86_64"
    packages: dict[str, str]
    base: str = ""  # the base image's id, not its tag: tags move
    runtime: str = ""  # the runtime version in the tag
    language: str = "python"


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An image that this engine can start now."""

    tag: str
    id: str
    manifest: ImageManifest

    def announced(self) -> Image:
        """Return the image as the worker announces it to the coordinator."""
        language = self.manifest.language
        return Image(
            name=self.tag,
            digest=self.id,
            language=language,
            python=minor_of(self.manifest.python) if language == "python" else "",
            packages=self.manifest.packages,
        )


def minor_of(version: str) -> str:
    """Return the minor version of a full one.

    >>> minor_of("3.11.2")
    '3.11'
    """
    return ".".join(version.split(".")[:2])
