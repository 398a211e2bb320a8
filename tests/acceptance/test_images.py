"""Images of other languages and Pythons, of packages and of a lender's own, on a real engine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridx.errors import EnvironmentFailed, SandboxError
from tests.support.wheels import make_source_archive, make_wheel
from worker.images import ImageInfo, engine_client, ensure_image
from worker.images.copied import find_interpreter
from worker.images.environments import LIMITS, build_environment, environments
from worker.images.families import build_family, ensure_family
from worker.images.resolve import Limits

from .runtime_box import container_box

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    client = engine_client(timeout_s=120)
    before = {tag for image in client.images() for tag in image["RepoTags"] or ()}
    yield client
    for image in client.images(filters={"label": "gridx.image"}):
        for tag in image["RepoTags"] or ():
            if tag not in before and tag.startswith(("gridx/env:", "gridx/testown:")):
                client.remove_image(tag)
    client.close()


@pytest.fixture(scope="module")
def base(api: Any) -> ImageInfo:
    return ensure_image(api)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip finds packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return folder


def built(
    api: Any, base: ImageInfo, *requirements: str, said: list[str] | None = None, **more: Any
) -> ImageInfo:
    say = (lambda _: None) if said is None else said.append
    return build_environment(api, requirements, base=base.announced(), say=say, **more)


def refused(api: Any, base: ImageInfo, *requirements: str, **more: Any) -> EnvironmentFailed:
    with pytest.raises(EnvironmentFailed) as caught:
        built(api, base, *requirements, **more)
    assert len(caught.value.message.encode()) <= 4096
    return caught.value


# ---------------------------------------------------------------- other languages and Pythons


@pytest.mark.parametrize(
    ("language", "code", "shown"),
    [
        ("bash", "for i in 1 2; do echo $((i * i)); done\necho ${BASH_VERSION%%.*}", "1\n4\n5\n"),
        ("node", "console.log([1, 2].map(i => i * i), process.argv.length)", "[ 1, 4 ] 2\n"),
    ],
)
def test_a_script_of_another_language_runs_in_an_image_without_packages(
    api: Any, base: ImageInfo, language: str, code: str, shown: str
) -> None:
    image = ensure_image(api, language=language)
    announced = image.announced()
    assert (announced.language, announced.python, announced.family) == (language, "", language)
    assert list(announced.packages) == [language]
    assert api.inspect_image(image.id)["Size"] < api.inspect_image(base.id)["Size"] / 2
    with container_box(image=image.tag) as box:
        outcome = box.run(code, kind="script", language=language)
    assert (outcome.stdout, outcome.exited.exit_code) == (shown, 0)


def test_a_python_that_no_debian_has_is_copied_from_this_machine(api: Any) -> None:
    own = find_interpreter("3.12")
    if own is None:  # then the lender hears what would help him
        with pytest.raises(SandboxError) as caught:
            ensure_image(api, "3.12", language="bash")
        assert "pyenv or uv" in caught.value.hint
        return
    image = ensure_image(api, "3.12", language="bash")  # the same base, without the packages
    with container_box(image=image.tag) as box:
        outcome = box.run(
            "import ssl, sqlite3, ctypes, lzma, zoneinfo, shutil, sys, sysconfig\n"
            "print(sys.version.split()[0], sys.prefix, shutil.which('python3.11'))\n"
            "print([v for v in sysconfig.get_config_vars().values() if '/root' in str(v)])",
            kind="script",
        )
    assert outcome.stdout == f"{own.version} /usr/local None\n[]\n"
    assert image.manifest.python == own.version


# ---------------------------------------------------------------- what a job lists under --pip


def test_packages_of_the_index_reach_the_job_and_never_pid_1(api: Any, base: ImageInfo) -> None:
    said: list[str] = []
    image = built(api, base, "toolz==1.0.0", "regex>=2024", "six==1.16.0", said=said)
    assert image.tag.startswith("gridx/env:")
    assert image.manifest.packages["six"] == "1.16.0" != base.manifest.packages["six"]
    assert {"toolz", "regex", "numpy"} <= set(image.announced().packages)
    assert said[0] == "resolving"
    assert said[1].startswith("downloading 3 wheels: regex ")
    assert said[2].startswith("installing 3 wheels, ")
    with container_box(image=image.tag) as box:
        outcome = box.run(
            "import toolz, regex, six, numpy, subprocess, sys\n"
            "print(toolz.__version__, regex.fullmatch(r'\\p{L}+', 'é') is not None)\n"
            "print(six.__version__, six.__file__, numpy.__file__.split('/numpy')[0])\n"
            "print(subprocess.run([sys.executable, '-c', 'import six; print(six.__version__)'],"
            " capture_output=True, text=True).stdout, end='')\n"
            "print([p for p in sys.path if 'gridx' in p])"
        )
    assert outcome.stderr == ""
    assert outcome.stdout.splitlines() == [
        "1.0.0 True",
        "1.16.0 /opt/gridx/env/six.py /opt/gridx/site",
        "1.16.0",
        "['/opt/gridx/lib', '/opt/gridx/env', '/opt/gridx/site']",
    ]

    again: list[str] = []
    assert built(api, base, "regex>=2024", "six==1.16.0", "toolz==1.0.0", said=again) == image
    assert again == []  # an unchanged list is not resolved twice within a day


def test_a_package_cannot_replace_what_the_runtime_itself_imports(
    api: Any, base: ImageInfo, index: Path
) -> None:
    gone = "import os\nos._exit(9)\n"
    names = ["msgspec", "gridx", "gridx_runtime", "IPython", "traitlets", "os", "select"]
    files = {f"{name}/__init__.py": gone for name in names}
    files |= {"sitecustomize.py": gone, "usercustomize.py": gone, "x.pth": "import os; os._exit(9)"}
    make_wheel(index, "takeover", files={**files, "takeover.py": "X = 1"})
    image = built(api, base, "takeover")
    with container_box(image=image.tag) as box:
        outcome = box.run(
            "import takeover, msgspec, gridx, IPython, os\n"
            "print(takeover.X, [m.__file__.split('/')[3] for m in (msgspec, gridx, IPython)])"
        )
    assert outcome.stdout == "1 ['site', 'lib', 'site']\n"


def test_a_list_that_the_image_already_has_needs_no_image_of_its_own(
    api: Any, base: ImageInfo
) -> None:
    assert built(api, base, "numpy") == base
    assert built(api, base) == base


def test_two_lists_that_come_to_the_same_are_one_image(
    api: Any, base: ImageInfo, index: Path
) -> None:
    make_wheel(index, "alpha")
    make_wheel(index, "beta", requires=["alpha"])
    assert built(api, base, "beta").id == built(api, base, "alpha>=1", "beta==1.0").id


def test_the_same_list_twice_at_once_is_built_once(api: Any, base: ImageInfo, index: Path) -> None:
    make_wheel(index, "alpha", "2.0")
    said: list[list[str]] = [[], []]
    images: list[ImageInfo] = []

    def build(lines: list[str]) -> None:
        with_own_client = engine_client(timeout_s=120)
        try:
            images.append(built(with_own_client, base, "alpha==2.0", said=lines))
        finally:
            with_own_client.close()

    threads = [threading.Thread(target=build, args=(lines,)) for lines in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert images[0] == images[1]
    assert sum(line == "resolving" for lines in said for line in lines) == 1
    assert sum("waiting" in line for lines in said for line in lines) <= 1


def test_a_package_that_is_not_there_is_named(api: Any, base: ImageInfo, index: Path) -> None:
    error = refused(api, base, "no-such-package")
    assert "No matching distribution found for no-such-package" in error.message
    assert str(index) not in error.message


def test_an_index_that_does_not_answer_is_the_workers_trouble(
    api: Any, base: ImageInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://ann:s3cret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")  # without one pip does not say why
    with pytest.raises(SandboxError) as caught:
        built(api, base, "no-such-package")
    assert "does not answer" in caught.value.message
    assert "s3cret" not in str(caught.value)


def test_versions_that_conflict_are_named(api: Any, base: ImageInfo, index: Path) -> None:
    make_wheel(index, "alpha")
    make_wheel(index, "beta", requires=["alpha<1"])
    error = refused(api, base, "alpha", "beta")
    assert "alpha<1" in error.message


def test_a_requirement_may_bring_another_version_of_what_the_image_has(
    api: Any, base: ImageInfo, index: Path
) -> None:
    make_wheel(index, "six", "1.10.0")
    make_wheel(index, "older", requires=["six<1.11"])
    image = built(api, base, "older")
    assert image.manifest.packages["six"] == "1.10.0"


def test_a_package_without_a_wheel_is_refused_and_its_code_does_not_run(
    api: Any, base: ImageInfo, index: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    make_source_archive(index, "onlysource", setup=f"open({str(ran)!r}, 'w')\n")
    error = refused(api, base, "onlysource")
    assert "without a wheel" in error.hint
    assert not ran.exists()


def test_a_dependency_by_address_is_refused_and_its_code_does_not_run(
    api: Any, base: ImageInfo, index: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    archive = make_source_archive(elsewhere, "hidden", setup=f"open({str(ran)!r}, 'w')\n")
    wheel = make_wheel(elsewhere, "hiddenwheel")
    make_wheel(index, "lure", requires=[f"hidden @ file://{archive}"])
    make_wheel(index, "lurewheel", requires=[f"hiddenwheel @ file://{wheel}"])
    error = refused(api, base, "lure")
    assert str(tmp_path) not in error.message
    assert not ran.exists()
    assert "hiddenwheel is no wheel of the package index" in refused(api, base, "lurewheel").message


@pytest.mark.parametrize(
    "line", ["x @ https://h.test/x.whl", "./x", "-r list.txt", "git+https://h.test/x", "x; y"]
)
def test_a_line_that_is_more_than_a_name_is_refused_unread(
    api: Any, base: ImageInfo, line: str
) -> None:
    assert "only names and versions" in refused(api, base, line).message


def test_a_lenders_list_of_packages_holds_for_what_they_need_too(
    api: Any, base: ImageInfo, index: Path
) -> None:
    make_wheel(index, "alpha")
    make_wheel(index, "beta", requires=["alpha"])
    error = refused(api, base, "beta", allowed=frozenset({"beta"}))
    assert "does not let jobs install alpha" in error.message


def test_a_download_above_its_cap_is_ended(api: Any, base: ImageInfo, index: Path) -> None:
    text = os.urandom(3 << 20).hex()
    make_wheel(index, "large", files={"large.py": f"X = {text!r}"})
    error = refused(api, base, "large", limits=Limits(download_bytes=1 << 20))
    assert "1 MiB" in error.message or "cannot be installed" in error.message


def test_a_download_above_its_time_is_ended(api: Any, base: ImageInfo, index: Path) -> None:
    make_wheel(index, "alpha")
    error = refused(api, base, "alpha", limits=Limits(timeout_s=0.01))
    assert "took more than" in error.message
    assert LIMITS.timeout_s == 300.0


def test_an_environment_with_a_container_is_known_as_live(
    api: Any, base: ImageInfo, index: Path
) -> None:
    make_wheel(index, "alpha", files={"alpha.py": f"X = {os.urandom(100_000).hex()!r}"})
    image = built(api, base, "alpha")
    with container_box(image=image.tag):
        (live,) = [one for one in environments(api) if one.tag == image.tag]
    assert live.is_live
    assert 200_000 < live.size_bytes < 2_000_000
    (idle,) = [one for one in environments(api) if one.tag == image.tag]
    assert not idle.is_live


# ---------------------------------------------------------------- a lender's own image


def test_a_lenders_own_image_has_more_packages_and_a_family(
    api: Any, base: ImageInfo, index: Path
) -> None:
    make_wheel(index, "alpha")
    minor = base.announced().python
    image = build_family(api, "testown", ["alpha"], minor, lambda _: None)
    assert image.announced().family == "testown"
    assert ensure_family(api, "testown", [minor], lambda _: None) == [image]
    make_wheel(index, "beta", requires=["alpha"])
    with_more = built(api, image, "beta")
    with container_box(image=with_more.tag) as box:
        outcome = box.run("import alpha, beta\nprint(alpha.__file__, beta.__file__)")
    assert outcome.stdout == "/opt/gridx/family/alpha.py /opt/gridx/env/beta.py\n"


def test_an_image_of_the_lenders_that_is_not_there_is_refused_with_its_command(api: Any) -> None:
    with pytest.raises(SandboxError) as caught:
        ensure_family(api, "nosuchfamily", ["3.11"], lambda _: None)
    assert "gridx-worker image --name nosuchfamily --add" in caught.value.hint
