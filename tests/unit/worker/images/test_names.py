"""A tag changes with everything that goes into its image."""

from __future__ import annotations

import re

import pytest

from gridx.errors import SandboxError
from worker.images.names import (
    checked_minor,
    default_image_tag,
    runtime_files,
    runtime_version,
    version_of,
)


def test_a_tag_names_the_python_and_the_version_of_what_is_inside() -> None:
    assert re.fullmatch(r"gridx/python:3\.11-[0-9a-f]{12}", default_image_tag("3.11"))


def test_another_python_is_another_tag() -> None:
    versions = {default_image_tag(minor).split("-")[1] for minor in ("3.11", "3.13")}
    assert len(versions) == 2


def test_a_changed_file_of_the_runtime_is_a_new_version() -> None:
    files = {"Dockerfile": b"FROM x", "lib/gridx_runtime/supervisor.py": b"pass"}
    changed = {**files, "lib/gridx_runtime/supervisor.py": b"pass\n"}
    assert runtime_version("3.11", files) != runtime_version("3.11", changed)
    assert runtime_version("3.11", files) == runtime_version("3.11", dict(files))


def test_a_moved_boundary_between_two_files_is_a_new_version() -> None:
    assert version_of([("a", b"bc")]) != version_of([("ab", b"c")])
    assert version_of([("a", b"b"), ("c", b"d")]) != version_of([("a", b"bcd")])


def test_the_core_and_the_runtime_are_in_the_image_and_no_cache_is() -> None:
    names = set(runtime_files())
    assert {"Dockerfile", "lib/gridx/events.py", "lib/gridx_runtime/frames.py"} <= names
    assert not [name for name in names if "__pycache__" in name or "worker/" in name]


@pytest.mark.parametrize("wrong", ["3", "3.11.2", "python3.11", "3.11; rm", ""])
def test_a_wrong_python_version_is_refused_with_an_example(wrong: str) -> None:
    with pytest.raises(SandboxError) as caught:
        checked_minor(wrong)
    assert "3.11" in caught.value.hint
