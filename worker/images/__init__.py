"""The images that sandboxes start from: find them, or build them, and say what is in them.

    base      python:3.x-slim where a registry answers, else a minimal Debian tree (debootstrap);
              another Python minor is the machine's own interpreter, copied into that tree
    packages  the base and the wheels of runtime/requirements.txt, byte-compiled
    python    the packages, the shared core and runtime/: what a sandbox starts from
    bash      a base without IPython and packages, with the same core and runtime; so is node
    NAME      an image of the lender's own: python with more packages (families.py)
    env       what a job's ``--pip`` lists, on one of the above (environments.py)

Each image is named after what it is made from, so that a changed runtime is a new tag and an
unchanged one is found. Nothing is downloaded or run by a build with a network: the wheels are
fetched on the host (wheels only, so no package's setup code runs) and every RUN has none.
"""

from __future__ import annotations

from .engine import engine_client, find_image
from .ensure import ensure_image
from .manifest import ImageInfo, ImageManifest
from .names import default_image_tag
from .offered import ensure_images, find_images

__all__ = [
    "ImageInfo",
    "ImageManifest",
    "default_image_tag",
    "engine_client",
    "ensure_image",
    "ensure_images",
    "find_image",
    "find_images",
]
