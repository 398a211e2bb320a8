"""Which base an image gets, and what is said where there is none."""

from __future__ import annotations

import pytest

from gridx.errors import SandboxError
from tests.support.image_engine import EngineWithoutRegistry
from worker.images import base, ensure_image


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
