"""An image is found, or built from what is there."""

from __future__ import annotations

import pytest

from gridx.errors import SandboxError
from tests.support.image_engine import MANIFEST, EngineThatFailsAStep, ImageEngine
from worker.images import (
    default_image_tag,
    ensure_image,
    ensure_images,
    find_image,
    find_images,
)
from worker.images.manifest import MANIFEST_LABEL
from worker.images.names import packages_version


def packages_tag() -> str:
    return f"gridx/packages:3.11-{packages_version('3.11')}"


def test_an_image_that_is_there_is_not_built_again() -> None:
    engine = ImageEngine(**{default_image_tag("3.11"): MANIFEST})
    info = ensure_image(engine, "3.11", progress=lambda _: None)
    assert info.manifest == MANIFEST
    assert engine.builds == []


def test_only_the_last_layer_is_built_when_the_packages_are_there() -> None:
    engine = ImageEngine(**{packages_tag(): MANIFEST})
    said: list[str] = []
    info = ensure_image(engine, "3.11", progress=said.append)
    assert info.tag == default_image_tag("3.11")
    assert info.manifest.packages == MANIFEST.packages
    assert info.manifest.runtime == info.tag.rpartition("-")[2]
    (build,) = engine.builds
    assert build["network_mode"] == "none"
    assert build["buildargs"] == {"PACKAGES": packages_tag(), "LANGUAGE": "python"}
    assert {"Dockerfile", "manifest.json", "lib/gridx/errors.py"} <= set(engine.contexts[0].keys())
    assert any(info.tag in line for line in said)


def test_rebuild_takes_nothing_from_the_engines_cache() -> None:
    engine = ImageEngine(
        **{packages_tag(): MANIFEST, default_image_tag("3.11"): MANIFEST},
    )
    ensure_image(engine, "3.11", rebuild=True, progress=lambda _: None)
    assert [build["nocache"] for build in engine.builds] == [True]


def test_an_image_without_a_manifest_is_not_taken_for_ours() -> None:
    engine = ImageEngine()
    engine.images_by_name["x"] = {"Id": "sha256:x", "Config": {"Labels": None}}
    engine.images_by_name["y"] = {"Id": "y", "Config": {"Labels": {MANIFEST_LABEL: "{"}}}
    assert find_image(engine, "x") is None
    assert find_image(engine, "y") is None
    assert find_image(engine, "z") is None


def test_a_failed_step_is_an_error_with_the_last_lines_of_its_log() -> None:
    engine = EngineThatFailsAStep(**{packages_tag(): MANIFEST})
    with pytest.raises(SandboxError) as caught:
        ensure_image(engine, "3.11", progress=lambda _: None)
    assert "exit code 3" in caught.value.message
    assert "Step 5/7 : RUN compile" in caught.value.message
    assert "gridx-worker image" in caught.value.hint


def test_a_worker_offers_each_python_and_language_the_default_first() -> None:
    engine = ImageEngine()
    for minor in ("3.11", "3.12"):
        engine.add(default_image_tag(minor), MANIFEST)
    said: list[str] = []
    found = ensure_images(
        engine, pythons=("3.12", "3.11", "3.12"), languages=("python",), progress=said.append
    )
    assert [info.tag for info in found] == [default_image_tag("3.12"), default_image_tag("3.11")]
    assert find_images(engine, pythons=("3.12", "3.11"), languages=("bash", "python")) == found
    assert said == []


def test_after_a_build_what_it_replaced_is_removed() -> None:
    engine = ImageEngine(**{"gridx/python:3.11-000000000000": MANIFEST})
    engine.add(packages_tag(), MANIFEST, kind="packages")
    ensure_images(engine, pythons=("3.11",), languages=("python",), progress=lambda _: None)
    assert engine.removed == ["gridx/python:3.11-000000000000"]


def test_a_language_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(SandboxError) as caught:
        ensure_images(ImageEngine(), languages=("cobol",), progress=lambda _: None)
    assert "python, bash, node" in caught.value.hint
