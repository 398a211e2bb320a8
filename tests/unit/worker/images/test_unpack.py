"""Wheels as files of a context, and wheels that want to be more."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from gridx.errors import SandboxError
from tests.support.wheels import make_wheel
from worker.images.unpack import placed, unpacked


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("pkg/mod.py", "pkg/mod.py"),
        ("pkg-1.0.dist-info/METADATA", "pkg-1.0.dist-info/METADATA"),
        ("pkg-1.0.data/purelib/pkg/x.py", "pkg/x.py"),
        ("pkg-1.0.data/platlib/pkg/x.so", "pkg/x.so"),
        ("pkg-1.0.data/scripts/run", None),
        ("pkg-1.0.data/data/etc/passwd", None),
        ("evil.pth", None),
        ("pkg/inner.pth", "pkg/inner.pth"),
    ],
)
def test_a_file_goes_where_pep_427_says_or_nowhere(name: str, place: str | None) -> None:
    assert placed(name) == place


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x", "a/../../x", "a\\..\\x", "p-1.data/purelib/../../../x"]
)
def test_a_name_that_leads_outside_is_refused(name: str) -> None:
    with pytest.raises(SandboxError) as caught:
        placed(name)
    assert "outside" in caught.value.message


def test_files_of_wheels_are_read_into_the_context(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, "alpha")
    files = {file.name: file.content for file in unpacked([wheel], under="more")}
    assert files["more/alpha.py"] == b"VERSION = '1.0'\n"
    assert "more/alpha-1.0.dist-info/METADATA" in files


def test_a_wheel_that_is_larger_when_unpacked_than_allowed_is_refused(tmp_path: Path) -> None:
    bomb = make_wheel(tmp_path, "bomb", files={"bomb.py": "0" * 1_000_000})
    assert bomb.stat().st_size < 10_000
    with pytest.raises(SandboxError) as caught:
        list(unpacked([bomb], under="more", limit_bytes=500_000))
    assert "larger than" in caught.value.message


def test_a_wheel_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    path = make_wheel(tmp_path, "liar", files={"liar.py": "0" * 1_000_000})
    with zipfile.ZipFile(path) as wheel:
        offset = wheel.start_dir
        size = (1_000_000).to_bytes(4, "little")
    data = bytearray(path.read_bytes())
    at = data.index(size, offset)
    data[at : at + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(SandboxError) as caught:
        list(unpacked([path], under="more"))
    assert "broken" in caught.value.message


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x-1-py3-none-any.whl"
    path.write_bytes(b"<html>")
    with pytest.raises(SandboxError) as caught:
        list(unpacked([path], under="more"))
    assert path.name in caught.value.message
    assert str(tmp_path) not in caught.value.message
