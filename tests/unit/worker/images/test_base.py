"""Which base an image gets, and what is said where there is none."""

from __future__ import annotations

import pytest

from gridx.errors import SandboxError
from tests.support.image_engine import MANIFEST, EngineWithoutRegistry, ImageEngine
from worker.images import base, default_image_tag, ensure_image, find_image
from worker.images.ensure import _current


def test_the_mirror_is_the_one_that_apt_itself_uses_for_main() -> None:
    listed = (
        "bookworm contrib http://mirror.test/c/\n"
        "bookworm main http://mirror.test/debian/\n"
        "bookworm main http://second.test/debian/\n"
        "bookworm-security main http://mirror.test/security/\n"
    )
    assert base._main_mirrors(listed) == {
        "bookworm": "http://mirror.test/debian/",
        "bookworm-security": "http://mirror.test/security/",
    }


def test_a_python_that_no_release_has_is_refused_with_those_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base, "_apt_sources", lambda: ("debian", {"bookworm": "http://m.test"}))
    engine = EngineWithoutRegistry()
    with pytest.raises(SandboxError) as caught:
        ensure_image(engine, "3.45", progress=lambda _: None)
    assert "python:3.45-slim" in caught.value.message
    assert "--python 3.11" in caught.value.hint
    assert engine.timeout == 60.0


@pytest.mark.parametrize(
    ("uid", "program", "advice"),
    [(1000, "/usr/sbin/debootstrap", "sudo gridx-worker image"), (0, None, "apt-get install")],
)
def test_without_root_or_debootstrap_it_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, uid: int, program: str | None, advice: str
) -> None:
    monkeypatch.setattr(base, "_apt_sources", lambda: ("debian", {"bookworm": "http://m.test"}))
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("shutil.which", lambda _: program)
    with pytest.raises(SandboxError) as caught:
        ensure_image(EngineWithoutRegistry(), "3.11", progress=lambda _: None)
    assert advice in caught.value.hint


class EngineThatTags(ImageEngine):
    """An engine that gives an image a second name."""

    def tag(self, image: str, repository: str, tag: str) -> None:
        self.images_by_name[f"{repository}:{tag}"] = self.inspect_image(image)


@pytest.fixture
def chooses(monkeypatch: pytest.MonkeyPatch) -> EngineThatTags:
    monkeypatch.setattr(base, "python_of", lambda *_: "3.11.9")
    engine = EngineThatTags()
    engine.add("my/python:1", MANIFEST)
    engine.add(default_image_tag("3.11"), MANIFEST)
    return engine


def test_a_chosen_base_is_kept_by_its_id_and_makes_images_on_another_old(
    chooses: EngineThatTags,
) -> None:
    tag = default_image_tag("3.11")
    assert _current(chooses, tag, "3.11") == find_image(chooses, tag)
    base.choose_base(chooses, "3.11", "my/python:1", lambda _: None)
    chooses.images_by_name["my/python:1"] = {"Id": "sha256:moved", "Config": {}}
    assert base.chosen_base(chooses, "3.11") == "sha256:my/python:1"
    assert base.ensure_base(chooses, "3.11", lambda _: None)["Id"] == "sha256:my/python:1"
    assert _current(chooses, tag, "3.11") is None


def test_a_choice_is_taken_back(chooses: EngineThatTags) -> None:
    base.choose_base(chooses, "3.11", "my/python:1", lambda _: None)
    base.choose_base(chooses, "3.11", "default", lambda _: None)
    assert base.chosen_base(chooses, "3.11") == ""
    base.choose_base(chooses, "3.11", "default", lambda _: None)


def test_a_base_that_is_nowhere_is_refused_with_what_to_do(
    chooses: EngineThatTags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "pull", lambda *_: False)
    with pytest.raises(SandboxError) as caught:
        base.choose_base(chooses, "3.11", "no/such:1", lambda _: None)
    assert "docker load" in caught.value.hint
