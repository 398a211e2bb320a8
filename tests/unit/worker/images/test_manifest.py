"""How an image is announced."""

from __future__ import annotations

from tests.support.image_engine import MANIFEST
from worker.images import ImageInfo


def test_an_image_is_announced_with_its_minor_version_and_packages() -> None:
    announced = ImageInfo(tag="gridx/python:3.11-x", id="sha256:i", manifest=MANIFEST).announced()
    assert (announced.name, announced.digest) == ("gridx/python:3.11-x", "sha256:i")
    assert (announced.language, announced.python) == ("python", "3.11")
    assert announced.packages == {"numpy": "2.4.6"}
