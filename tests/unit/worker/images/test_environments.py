"""Which environments stay on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gridx.errors import EnvironmentFailed, SandboxError
from tests.support.image_engine import MANIFEST, ImageEngine
from tests.support.wheels import make_wheel
from worker.images import ImageInfo
from worker.images import environments as module
from worker.images.environments import build_environment, environments, evict
from worker.images.resolve import Pin, Wheel

BASE = ImageInfo(tag="gridx/python:3.11-a", id="sha256:gridx/python:3.11-a", manifest=MANIFEST)


@pytest.fixture
def engine(tmp_path: Path) -> ImageEngine:
    """Three environments of 100 bytes each, used one after another, on an image of 1000."""
    made = ImageEngine()
    made.add(BASE.tag, MANIFEST, size_bytes=1000)
    folder = tmp_path / "gridx" / "environments"
    folder.mkdir(parents=True)
    for at, name in enumerate(("second", "first", "third")):
        made.add(
            f"gridx/env:{name}",
            MANIFEST,
            kind="environment",
            size_bytes=1100,
            labels={"gridx.below": BASE.id},
        )
        used = folder / f"used-{name}"
        used.touch()
        os.utime(used, times=((100, 50, 200)[at],) * 2)
    return made


def test_an_environment_counts_with_what_it_adds(engine: ImageEngine) -> None:
    assert [(one.tag, one.size_bytes) for one in environments(engine)] == [
        ("gridx/env:first", 100),
        ("gridx/env:second", 100),
        ("gridx/env:third", 100),
    ]


def test_those_used_longest_ago_go_first(engine: ImageEngine) -> None:
    assert evict(engine, 150) == ["gridx/env:first", "gridx/env:second"]
    assert evict(engine, 150) == []


def test_one_with_a_container_and_the_one_just_built_stay(engine: ImageEngine) -> None:
    engine.live.append("sha256:gridx/env:first")
    assert evict(engine, 0, keep="sha256:gridx/env:second") == ["gridx/env:third"]


def test_nothing_is_resolved_for_a_list_that_is_refused() -> None:
    engine = ImageEngine()
    engine.add(BASE.tag, MANIFEST)
    said: list[str] = []
    with pytest.raises(EnvironmentFailed) as caught:
        build_environment(
            engine, ["x @ https://h.test/x.whl"], base=BASE.announced(), say=said.append
        )
    assert "only names and versions" in caught.value.message
    assert said == []


def test_an_image_that_is_gone_is_the_workers_trouble_and_not_the_users() -> None:
    with pytest.raises(SandboxError) as caught:
        build_environment(ImageEngine(), ["x"], base=BASE.announced(), say=lambda _: None)
    assert BASE.tag in caught.value.message


class EngineWithLargeResults(ImageEngine):
    """Whatever it builds takes 3 GiB."""

    def build(self, **options: Any) -> Any:
        lines = super().build(**options)
        self.images_by_name[options["tag"]]["Size"] = 3 << 30
        return lines


def test_an_environment_that_takes_too_much_is_removed_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Found:
        versions: ClassVar = {"alpha": "1.0"}
        missing = (Pin("alpha", "1.0", "ab"),)

    @contextmanager
    def resolved(*_: object, **__: object) -> Iterator[Found]:
        yield Found()

    wheel = make_wheel(tmp_path, "alpha")
    monkeypatch.setattr(module, "resolve", resolved)
    monkeypatch.setattr(module, "fetched", lambda _: [Wheel(wheel.name, "ab", wheel)])
    engine = EngineWithLargeResults()
    engine.add(BASE.tag, MANIFEST, size_bytes=1 << 20)
    with pytest.raises(EnvironmentFailed) as caught:
        build_environment(engine, ["alpha"], base=BASE.announced(), say=lambda _: None)
    assert "a job may have 2 GiB" in caught.value.message
    (build,) = engine.builds
    assert engine.removed == [build["tag"]]
    assert build["network_mode"] == "none"
    assert build["container_limits"] == {"memory": 2 << 30, "memswap": 2 << 30}
    assert build["buildargs"] == {"BASE": BASE.id, "FOLDER": "/opt/gridx/env"}
    assert "more/alpha.py" in engine.contexts[0]
