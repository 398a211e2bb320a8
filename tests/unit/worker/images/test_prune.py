"""Old images of ours go when nothing uses them; all else stays."""

from __future__ import annotations

import msgspec

from tests.support.image_engine import MANIFEST, ImageEngine
from worker.images.names import default_image_tag, packages_version, version_in
from worker.images.prune import prune

OLD = msgspec.structs.replace(MANIFEST, runtime="000000000000")


def engine() -> ImageEngine:
    made = ImageEngine()
    current = default_image_tag("3.11")
    now = msgspec.structs.replace(MANIFEST, runtime=version_in(current))
    made.add(current, now)
    made.add(f"gridx/packages:3.11-{packages_version('3.11')}", MANIFEST, kind="packages")
    made.add("gridx/torch:3.11-now", now, kind="family", created=2)
    made.add("gridx/env:now", now, kind="environment")
    made.add("gridx/base:bookworm", MANIFEST, kind="base")
    made.add("mine/python:3.11-000000000000", OLD)
    return made


def test_what_is_of_today_stays() -> None:
    made = engine()
    assert prune(made, lambda _: None, grace_s=0) == []


def test_what_a_newer_version_has_replaced_goes() -> None:
    made = engine()
    made.add("gridx/python:3.11-000000000000", OLD)
    made.add("gridx/packages:3.11-000000000000", OLD, kind="packages")
    made.add("gridx/bash:000000000000", msgspec.structs.replace(OLD, language="bash"))
    made.add("gridx/torch:3.11-old", OLD, kind="family")
    made.add("gridx/env:old", OLD, kind="environment")
    said: list[str] = []
    removed = prune(made, said.append, grace_s=0)
    assert len(removed) == len(said) == 5
    assert not [tag for tag in made.images_by_name if tag.startswith("gridx/") and "0000" in tag]


def test_an_old_image_with_a_container_and_one_just_built_stay() -> None:
    made = engine()
    made.add("gridx/python:3.11-000000000000", OLD)
    made.live.append("sha256:gridx/python:3.11-000000000000")
    made.add("gridx/python:3.11-111111111111", OLD, created=1 << 40)
    assert prune(made, lambda _: None) == []


def test_the_last_of_a_lenders_own_stays_until_the_next_is_built() -> None:
    made = engine()
    made.add("gridx/jax:3.11-old", OLD, kind="family", created=1)
    assert prune(made, lambda _: None, grace_s=0) == []
    made.add("gridx/jax:3.11-new", OLD, kind="family", created=2)
    assert prune(made, lambda _: None, grace_s=0) == ["gridx/jax:3.11-old"]
