"""The sandbox image's names, its manifest, and what a failed build says."""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Any

import docker.errors
import msgspec
import pytest

from gridx.errors import SandboxError
from worker import images
from worker.images import ImageInfo, ImageManifest

ROOT = Path(__file__).resolve().parents[3]
MANIFEST = ImageManifest(
    python="3.11.2", platform="linux/x86_64", packages={"numpy": "2.4.6"}, base="sha256:b"
)


class Engine:
    """An engine that keeps images by name and answers as the real one does."""

    def __init__(self, **there: ImageManifest) -> None:
        self.timeout = 60.0
        self.images: dict[str, dict[str, Any]] = {}
        self.builds: list[dict[str, Any]] = []
        self.contexts: list[list[str]] = []
        for name, manifest in there.items():
            self.add(name, manifest)

    def add(self, name: str, manifest: ImageManifest) -> None:
        label = {images.MANIFEST_LABEL: msgspec.json.encode(manifest).decode()}
        self.images[name] = {"Id": f"sha256:{name}", "Config": {"Labels": label}}

    def inspect_image(self, name: str) -> dict[str, Any]:
        try:
            return self.images[name]
        except KeyError:
            raise docker.errors.ImageNotFound(name) from None

    def build(self, *, fileobj: Any, tag: str, labels: dict[str, str], **options: Any) -> Any:
        self.builds.append({"tag": tag, "labels": labels, **options})
        with tarfile.open(fileobj=io.BytesIO(fileobj.read())) as tar:
            self.contexts.append(tar.getnames())
        self.images[tag] = {"Id": "sha256:new", "Config": {"Labels": labels}}
        return iter([{"stream": "Step 1/2"}, {"stream": "done"}])


class EngineThatFailsAStep(Engine):
    """Answers 200 to a build and reports in its stream that a step failed."""

    def build(self, **_: Any) -> Any:
        return iter([{"stream": "Step 5/7 : RUN compile"}, {"error": "exit code 3"}])


class EngineWithoutRegistry(Engine):
    """No registry answers it."""

    def inspect_distribution(self, _: str) -> dict[str, Any]:
        assert self.timeout == images.REGISTRY_TIMEOUT_S
        raise docker.errors.APIError("no such host")


@pytest.fixture(autouse=True)
def _own_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def packages_tag() -> str:
    return f"gridx/packages:3.11-{images.packages_version('3.11')}"


# ---------------------------------------------------------------- names


def test_a_tag_names_the_python_and_the_version_of_what_is_inside() -> None:
    assert re.fullmatch(r"gridx/python:3\.11-[0-9a-f]{12}", images.default_image_tag("3.11"))


def test_another_python_is_another_tag() -> None:
    versions = {images.default_image_tag(minor).split("-")[1] for minor in ("3.11", "3.13")}
    assert len(versions) == 2


def test_a_changed_file_of_the_runtime_is_a_new_version() -> None:
    files = {"Dockerfile": b"FROM x", "lib/gridx_runtime/supervisor.py": b"pass"}
    changed = {**files, "lib/gridx_runtime/supervisor.py": b"pass\n"}
    assert images._runtime_version("3.11", files) != images._runtime_version("3.11", changed)
    assert images._runtime_version("3.11", files) == images._runtime_version("3.11", dict(files))


def test_a_moved_boundary_between_two_files_is_a_new_version() -> None:
    assert images._version_of([("a", b"bc")]) != images._version_of([("ab", b"c")])
    assert images._version_of([("a", b"b"), ("c", b"d")]) != images._version_of([("a", b"bcd")])


def test_the_core_and_the_runtime_are_in_the_image_and_no_cache_is() -> None:
    names = set(images._runtime_files())
    assert {"Dockerfile", "lib/gridx/events.py", "lib/gridx_runtime/frames.py"} <= names
    assert not [name for name in names if "__pycache__" in name or "worker" in name]


@pytest.mark.parametrize("wrong", ["3", "3.11.2", "python3.11", "3.11; rm", ""])
def test_a_wrong_python_version_is_refused_with_an_example(wrong: str) -> None:
    with pytest.raises(SandboxError) as caught:
        images._checked_minor(wrong)
    assert "3.11" in caught.value.hint


# ---------------------------------------------------------------- what is in it


def test_both_ends_of_a_pickle_have_the_same_releases() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = path.read_text().splitlines()
        return dict(line.split("==") for line in lines if "==" in line and line[0] != "#")

    here, there = pins(ROOT / "constraints.txt"), pins(images.RUNTIME_DIR / "requirements.txt")
    assert {"cloudpickle", "msgspec", "ipython", "numpy"} <= set(there)
    assert {name: here.get(name) for name in there} == there


def test_the_manifest_names_distributions_as_pep_503_does(tmp_path: Path) -> None:
    for name, version in (("IPython", "9.18.1"), ("matplotlib_inline", "0.2.2")):
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}")
    assert images.packages_in(tmp_path) == {"ipython": "9.18.1", "matplotlib-inline": "0.2.2"}


def test_an_image_is_announced_with_its_minor_version_and_packages() -> None:
    announced = ImageInfo(tag="gridx/python:3.11-x", id="sha256:i", manifest=MANIFEST).announced()
    assert (announced.name, announced.digest) == ("gridx/python:3.11-x", "sha256:i")
    assert (announced.language, announced.python) == ("python", "3.11")
    assert announced.packages == {"numpy": "2.4.6"}


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("numpy/_core/tests/test_api.py", True),
        ("pandas/tests/frame/test_api.py", True),
        ("pyarrow/include/arrow/api.h", True),
        ("sympy/core/tests/test_expr.py", True),
        ("sklearn/linear_model/tests/test_ridge.py", True),
        ("bin/f2py", True),
        ("numpy/testing/__init__.py", False),
        ("scipy/stats/_stats.py", False),
        ("pyarrow/lib.so", False),
        ("jedi/third_party/tests/x.pyi", False),
    ],
)
def test_tests_and_headers_of_the_big_wheels_are_left_out(name: str, left_out: bool) -> None:
    assert bool(images._LEFT_OUT.search(name)) is left_out


def test_wheels_are_looked_for_from_the_newest_glibc_to_the_oldest() -> None:
    names = images.wheel_platforms("amd64")
    assert names[0] == "manylinux_2_36_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux_2_5_x86_64"} <= set(names)
    assert "manylinux_2_5_aarch64" not in images.wheel_platforms("arm64")
    assert "manylinux_2_17_aarch64" in images.wheel_platforms("arm64")


def test_the_mirror_is_the_one_that_apt_itself_uses_for_main() -> None:
    listed = (
        "bookworm contrib http://mirror.test/c/\n"
        "bookworm main http://mirror.test/debian/\n"
        "bookworm main http://second.test/debian/\n"
        "bookworm-security main http://mirror.test/security/\n"
    )
    assert images._main_mirrors(listed) == {
        "bookworm": "http://mirror.test/debian/",
        "bookworm-security": "http://mirror.test/security/",
    }


# ---------------------------------------------------------------- finding and building


def test_an_image_that_is_there_is_not_built_again() -> None:
    engine = Engine(**{images.default_image_tag("3.11"): MANIFEST})
    info = images.ensure_image(engine, "3.11", progress=lambda _: None)
    assert info.manifest == MANIFEST
    assert engine.builds == []


def test_only_the_last_layer_is_built_when_the_packages_are_there() -> None:
    engine = Engine(**{packages_tag(): MANIFEST})
    said: list[str] = []
    info = images.ensure_image(engine, "3.11", progress=said.append)
    assert info.tag == images.default_image_tag("3.11")
    assert info.manifest.packages == MANIFEST.packages
    assert info.manifest.runtime == info.tag.rpartition("-")[2]
    (build,) = engine.builds
    assert build["network_mode"] == "none"
    assert build["buildargs"] == {"PACKAGES": packages_tag()}
    assert {"Dockerfile", "manifest.json", "lib/gridx/errors.py"} <= set(engine.contexts[0])
    assert any(info.tag in line for line in said)


def test_rebuild_takes_nothing_from_the_engines_cache() -> None:
    engine = Engine(
        **{packages_tag(): MANIFEST, images.default_image_tag("3.11"): MANIFEST},
    )
    images.ensure_image(engine, "3.11", rebuild=True, progress=lambda _: None)
    assert [build["nocache"] for build in engine.builds] == [True]


def test_an_image_without_a_manifest_is_not_taken_for_ours() -> None:
    engine = Engine()
    engine.images["x"] = {"Id": "sha256:x", "Config": {"Labels": None}}
    engine.images["y"] = {"Id": "y", "Config": {"Labels": {images.MANIFEST_LABEL: "{"}}}
    assert images.find_image(engine, "x") is None
    assert images.find_image(engine, "y") is None
    assert images.find_image(engine, "z") is None


def test_a_failed_step_is_an_error_with_the_last_lines_of_its_log() -> None:
    engine = EngineThatFailsAStep(**{packages_tag(): MANIFEST})
    with pytest.raises(SandboxError) as caught:
        images.ensure_image(engine, "3.11", progress=lambda _: None)
    assert "exit code 3" in caught.value.message
    assert "Step 5/7 : RUN compile" in caught.value.message
    assert "gridx-worker image" in caught.value.hint


def test_a_python_that_no_release_has_is_refused_with_those_that_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "_apt_sources", lambda: ("debian", {"bookworm": "http://m.test"}))
    engine = EngineWithoutRegistry()
    with pytest.raises(SandboxError) as caught:
        images.ensure_image(engine, "3.12", progress=lambda _: None)
    assert "python:3.12-slim" in caught.value.message
    assert "--python 3.11" in caught.value.hint
    assert engine.timeout == 60.0


@pytest.mark.parametrize(
    ("uid", "program", "advice"),
    [(1000, "/usr/sbin/debootstrap", "sudo gridx-worker image"), (0, None, "apt-get install")],
)
def test_without_root_or_debootstrap_it_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, uid: int, program: str | None, advice: str
) -> None:
    monkeypatch.setattr(images, "_apt_sources", lambda: ("debian", {"bookworm": "http://m.test"}))
    monkeypatch.setattr(images.os, "geteuid", lambda: uid)
    monkeypatch.setattr(images.shutil, "which", lambda _: program)
    with pytest.raises(SandboxError) as caught:
        images.ensure_image(EngineWithoutRegistry(), "3.11", progress=lambda _: None)
    assert advice in caught.value.hint


def test_a_program_that_fails_gives_its_last_words() -> None:
    with pytest.raises(SandboxError) as caught:
        images._run_logged(
            ["sh", "-c", "echo no matching wheel >&2; exit 4"], timeout_s=10, what="Fetching"
        )
    assert "Fetching failed with exit code 4" in caught.value.message
    assert "no matching wheel" in caught.value.message


def test_without_an_engine_the_command_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert images.main(["--python", "3.11"]) == 1
    said = capsys.readouterr().err
    assert "No Docker engine answers." in said
    assert "docs/howto/install-docker.md" in said
