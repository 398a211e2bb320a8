"""The sandbox image: find it, or build it, and say what is in it.

    base      python:3.x-slim where a registry answers, else a minimal Debian tree (debootstrap)
    packages  the base and the wheels of runtime/requirements.txt, byte-compiled
    python    the packages, the shared core and runtime/: what a sandbox starts from

Each image is named after what it is made from, so that a changed runtime is a new tag and an
unchanged one is found. Nothing is downloaded or run by a build with a network: the wheels are
fetched on the host (wheels only, so no package's setup code runs) and every RUN has none.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import IO, Any, Final

import blake3
import docker
import docker.errors
import docker.utils
import msgspec
import requests

import gridx
from gridx.errors import SandboxError
from gridx.resources import Image, format_bytes

RUNTIME_DIR: Final = Path(__file__).parent / "runtime"
CORE_DIR: Final = Path(gridx.__file__).parent

LABEL: Final = "gridx.image"  # "base", "packages" or "python": what an image of ours is
MANIFEST_LABEL: Final = "gridx.manifest"

DEFAULT_SOCKET: Final = "unix:///var/run/docker.sock"
REGISTRY_TIMEOUT_S: Final = 10.0
PULL_TIMEOUT_S: Final = 600.0
BUILD_TIMEOUT_S: Final = 900.0
PIP_TIMEOUT_S: Final = 900.0
DEBOOTSTRAP_TIMEOUT_S: Final = 900.0

SUITES: Final[Mapping[tuple[str, str], str]] = {
    # (distribution, Python minor) -> the release whose own python3 that is
    ("debian", "3.11"): "bookworm",
    ("debian", "3.13"): "trixie",
    ("ubuntu", "3.12"): "noble",
}

# Never imported by a job, and a third of the files to compile: tests and C headers of the wheels.
_LEFT_OUT: Final = re.compile(
    r"(^|/)__pycache__(/|$)"
    r"|^(numpy|pandas|matplotlib|mpl_toolkits|pyarrow|scipy|sklearn|sympy|mpmath)/(.*/)?tests(/|$)"
    r"|^pyarrow/(include|src)(/|$)"
    r"|^bin(/|$)"
)
_IN_THE_TREE_FOR_NOTHING: Final = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/cache/debconf",
    "var/lib/apt/lists",
    "var/log",
)

Progress = Callable[[str], None]


class ImageManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an image holds. Packages map normalised distribution names (PEP 503) to versions."""

    python: str  # "3.11.2"
    platform: str  # "linux/x86_64"
    packages: dict[str, str]
    base: str = ""  # the base image's id, not its tag: tags move
    runtime: str = ""  # the runtime version in the tag


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An image that this engine can start now."""

    tag: str
    id: str
    manifest: ImageManifest

    def announced(self) -> Image:
        """Return the image as the worker announces it to the coordinator."""
        return Image(
            name=self.tag,
            digest=self.id,
            language="python",
            python=_minor_of(self.manifest.python),
            packages=self.manifest.packages,
        )


# ---------------------------------------------------------------- names


def current_python_minor() -> str:
    """Return the minor version of this process, "3.11"."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _minor_of(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _checked_minor(python_minor: str) -> str:
    if not re.fullmatch(r"3\.\d{1,2}", python_minor):
        raise SandboxError(
            f"{python_minor!r} is not a Python minor version.", hint="Write it as 3.11."
        )
    return python_minor


def _version_of(parts: Iterable[tuple[str, bytes]]) -> str:
    """Return 12 hexadecimal digits that change when a name or a content changes (BLAKE3)."""
    digest = blake3.blake3()
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def _files(folder: Path, patterns: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    return sorted(path for path in found if "__pycache__" not in path.parts)


def _lib_files() -> Iterator[tuple[str, Path]]:
    """Yield (path below /opt/gridx/lib, file) for what runs inside the container."""
    for path in _files(CORE_DIR, ["*.py", "py.typed"]):
        yield f"gridx/{path.relative_to(CORE_DIR).as_posix()}", path
    for path in _files(RUNTIME_DIR, ["*.py"]):
        yield f"gridx_runtime/{path.relative_to(RUNTIME_DIR).as_posix()}", path


def packages_version(python_minor: str) -> str:
    """Return the version of the packages layer: its list, its recipe and its Python."""
    return _version_of(
        [("python", python_minor.encode())]
        + [(n, (RUNTIME_DIR / n).read_bytes()) for n in ("requirements.txt", "packages.Dockerfile")]
    )


def _runtime_files() -> dict[str, bytes]:
    """Return the recipe and every file copied into the image, by its path in the context."""
    files = {f"lib/{name}": path.read_bytes() for name, path in _lib_files()}
    return {"Dockerfile": (RUNTIME_DIR / "Dockerfile").read_bytes(), **files}


def _runtime_version(python_minor: str, files: Mapping[str, bytes]) -> str:
    return _version_of([("packages", packages_version(python_minor).encode()), *files.items()])


def default_image_tag(python_minor: str | None = None) -> str:
    """Return the tag of the image for ``python_minor`` ("3.11"; this process's by default).

    It changes with the package list, a recipe or any file copied into the image. The base is no
    part of it: which base is at hand is known only to an engine. The manifest names it by its id.
    """
    minor = _checked_minor(python_minor or current_python_minor())
    return f"gridx/python:{minor}-{_runtime_version(minor, _runtime_files())}"


# ---------------------------------------------------------------- the engine


def engine_client(*, timeout_s: float = 60.0, host: str | None = None) -> Any:
    """Return a low-level docker-py client of an engine that answers.

    Args:
        timeout_s: of each call.
        host: its address; by default what ``DOCKER_HOST`` or the default socket says.

    Raises:
        SandboxError: no engine answers, or this user may not speak to it.
    """
    address: dict[str, Any] = {"base_url": host} if host else docker.utils.kwargs_from_env()
    try:
        _try_socket(address.get("base_url") or DEFAULT_SOCKET, timeout_s)
        return docker.APIClient(version="auto", timeout=timeout_s, **address)
    except PermissionError as error:
        raise SandboxError(
            "A Docker engine is there, but this user may not speak to it.",
            hint="Join its group with `sudo usermod -aG docker $USER` and log in again.",
        ) from error
    except (OSError, docker.errors.DockerException) as error:
        raise SandboxError(
            "No Docker engine answers.",
            hint="Start Docker, or let `python scripts/docker_engine.py start` do it; "
            "docs/howto/install-docker.md has the commands of each system.",
        ) from error


def _try_socket(address: str, timeout_s: float) -> None:
    """Connect once to a Unix socket: docker-py leaks its own when nobody listens there."""
    path = re.sub(r"^(http\+)?unix:/*", "/", address)
    if path != address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(timeout_s)
            probe.connect(path)


def _find(api: Any, name: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = api.inspect_image(name)
    except docker.errors.ImageNotFound:
        return None
    return found


def find_image(api: Any, tag: str) -> ImageInfo | None:
    """Return the image named ``tag`` when this engine has it and it carries a manifest."""
    found = _find(api, tag)
    if found is None:
        return None
    label = ((found.get("Config") or {}).get("Labels") or {}).get(MANIFEST_LABEL)
    if not label:
        return None
    try:
        manifest = msgspec.json.decode(label, type=ImageManifest)
    except msgspec.MsgspecError:
        return None
    return ImageInfo(tag=tag, id=str(found["Id"]), manifest=manifest)


# ---------------------------------------------------------------- building


def ensure_image(
    api: Any,
    python_minor: str | None = None,
    *,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> ImageInfo:
    """Return the default image of ``python_minor``, built now when this engine lacks it.

    Blocking: seconds when only the runtime changed, minutes the first time. One build at a time
    on a machine; a second caller waits and finds the result.

    Args:
        api: a low-level docker-py client, used by this thread only.
        python_minor: "3.11"; this process's by default.
        rebuild: build the last layer even where the image is there.
        progress: called with one line a step; by default the line goes to stderr.

    Raises:
        SandboxError: a step failed; it names the step and ends with the log's last lines.
    """
    minor = _checked_minor(python_minor or current_python_minor())
    # Read once: what is named is what is built, even while somebody edits the files.
    files = _runtime_files()
    version = _runtime_version(minor, files)
    tag = f"gridx/python:{minor}-{version}"
    if not rebuild and (there := find_image(api, tag)):
        return there
    say = progress or _progress_to_stderr()
    with _build_lock(say):
        if not rebuild and (there := find_image(api, tag)):
            return there
        packages = _ensure_packages(api, minor, say)
        say(f"adding the runtime: {tag}")
        manifest = msgspec.structs.replace(packages.manifest, runtime=version)
        _build(
            api,
            tag,
            files=files.items(),
            manifest=manifest,
            kind="python",
            buildargs={"PACKAGES": packages.tag},
            nocache=rebuild,
        )
        built = find_image(api, tag)
        if built is None:
            raise SandboxError(f"The engine built {tag} but does not have it.")
        say(f"ready: {tag}")
        return built


def _ensure_packages(api: Any, minor: str, say: Progress) -> ImageInfo:
    tag = f"gridx/packages:{minor}-{packages_version(minor)}"
    if there := find_image(api, tag):
        return there
    base = _ensure_base(api, minor, say)
    with tempfile.TemporaryDirectory(prefix="gridx-image-") as scratch:
        site = Path(scratch) / "site"
        machine = str(base.get("Architecture") or platform.machine())
        _install_wheels(site, minor, machine, say)
        manifest = ImageManifest(
            python=_python_of(api, str(base["Id"]), minor),
            platform=f"linux/{_wheel_machine(machine)}",
            packages=packages_in(site),
            base=str(base["Id"]),
        )
        wheels = [
            (f"site/{name}", path)
            for path in sorted(site.rglob("*"))
            if path.is_file() and not _LEFT_OUT.search(name := path.relative_to(site).as_posix())
        ]
        size_bytes = sum(path.stat().st_size for _, path in wheels)
        say(f"compiling {len(manifest.packages)} packages ({format_bytes(size_bytes)})")
        _build(
            api,
            tag,
            files=chain(
                [("Dockerfile", (RUNTIME_DIR / "packages.Dockerfile").read_bytes())],
                ((name, path.read_bytes()) for name, path in wheels),
            ),
            manifest=manifest,
            kind="packages",
            buildargs={"BASE": str(base["Id"])},
        )
    built = find_image(api, tag)
    if built is None:
        raise SandboxError(f"The engine built {tag} but does not have it.")
    return built


def packages_in(site: Path) -> dict[str, str]:
    """Return the versions of the distributions in the folder ``site`` by normalised name."""
    found = {
        re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower(): dist.version
        for dist in metadata.distributions(path=[str(site)])
    }
    return dict(sorted(found.items()))


def _build(
    api: Any,
    tag: str,
    *,
    files: Iterable[tuple[str, bytes]],
    manifest: ImageManifest,
    kind: str,
    buildargs: Mapping[str, str],
    nocache: bool = False,
) -> None:
    """Build ``tag`` from a context of ``files``, with no network in any step."""
    as_json = msgspec.json.encode(manifest)
    log: deque[str] = deque(maxlen=20)
    with tempfile.TemporaryFile() as context:
        with tarfile.open(fileobj=context, mode="w") as tar:
            _add(tar, "manifest.json", as_json)
            for name, content in files:
                _add(tar, name, content)
        context.seek(0)
        try:
            lines = api.build(
                fileobj=context,
                custom_context=True,
                tag=tag,
                buildargs=dict(buildargs),
                labels={LABEL: kind, MANIFEST_LABEL: as_json.decode()},
                network_mode="none",
                nocache=nocache,
                rm=True,
                forcerm=True,
                decode=True,
                timeout=BUILD_TIMEOUT_S,
            )
            for line in lines:
                # The engine answers 200 and reports a failed step in the stream.
                if "error" in line:
                    raise _failed(f"The image {tag} could not be built: {line['error']}", log)
                log.append(str(line.get("stream", "")).rstrip())
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise _failed(f"The image {tag} could not be built: {error}", log) from error


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file as root's, readable by all and writable by nobody else, with a fixed date."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    info.mtime = 315_532_800  # 1980-01-01: the same input makes the same layer
    tar.addfile(info, io.BytesIO(content))


def _failed(sentence: str, log: Iterable[str], hint: str | None = None) -> SandboxError:
    tail = "\n".join(line for line in log if line.strip())
    return SandboxError(
        sentence + (f"\n{tail}" if tail else ""),
        hint=hint or "Correct what the lines above name, then run `gridx-worker image` again.",
    )


# ---------------------------------------------------------------- the base


def _ensure_base(api: Any, minor: str, say: Progress) -> dict[str, Any]:
    """Return the engine's description of the base image, pulled or bootstrapped when absent."""
    slim = f"python:{minor}-slim"
    if there := _find(api, slim):
        return there
    if _registry_answers(api, slim):
        say(f"pulling {slim}")
        if _pull(api, slim) and (there := _find(api, slim)):
            return there
        say(f"{slim} could not be pulled; a minimal Debian tree does as well")
    return _ensure_bootstrapped(api, minor, say)


def _registry_answers(api: Any, name: str) -> bool:
    """Return whether the registry knows ``name``, within ``REGISTRY_TIMEOUT_S``."""
    before = api.timeout
    api.timeout = REGISTRY_TIMEOUT_S
    try:
        api.inspect_distribution(name)
    except (docker.errors.DockerException, requests.RequestException):
        return False
    finally:
        api.timeout = before
    return True


def _pull(api: Any, name: str) -> bool:
    repository, _, tag = name.partition(":")
    before = api.timeout
    api.timeout = PULL_TIMEOUT_S
    try:
        return not any(
            "error" in line for line in api.pull(repository, tag=tag, stream=True, decode=True)
        )
    except (docker.errors.DockerException, requests.RequestException):
        return False
    finally:
        api.timeout = before


def _ensure_bootstrapped(api: Any, minor: str, say: Progress) -> dict[str, Any]:
    distribution, mirrors = _apt_sources()
    suite = SUITES.get((distribution, minor))
    if suite is None:
        own = [python for (name, python) in SUITES if name == distribution]
        raise SandboxError(
            f"No registry answers, so python:{minor}-slim cannot be pulled, and "
            f"{distribution or 'this system'} has no release with Python {minor} to make it from.",
            hint=(
                f"Use Python {' or '.join(own)} instead (--python {own[0]}), or load the image "
                f"with `docker load`."
                if own
                else f"Let the engine reach a registry, or load python:{minor}-slim with "
                "`docker load`."
            ),
        )
    name = f"gridx/base:{suite}"
    if there := _find(api, name):
        return there
    if os.geteuid() != 0:
        raise SandboxError(
            f"No registry answers, and making a {suite} tree needs root.",
            hint="Run `sudo gridx-worker image` once, or let the engine reach a registry.",
        )
    if shutil.which("debootstrap") is None:
        raise SandboxError(
            "No registry answers, and debootstrap is not installed.",
            hint="Run `apt-get install -y debootstrap`, or let the engine reach a registry.",
        )
    mirror = mirrors.get(suite) or next(iter(mirrors.values()))
    with tempfile.TemporaryDirectory(prefix="gridx-base-") as scratch:
        tree = Path(scratch) / "tree"
        say(f"no registry answers; unpacking a minimal {suite} with its Python (about 35 s)")
        _run_logged(
            [
                "debootstrap",
                "--variant=minbase",
                "--include=python3,tzdata",
                suite,
                str(tree),
                mirror,
            ],
            timeout_s=DEBOOTSTRAP_TIMEOUT_S,
            what=f"Unpacking {suite}",
            hint="Run `apt-get update` and look whether apt can reach its mirror.",
        )
        for folder in _IN_THE_TREE_FOR_NOTHING:
            shutil.rmtree(tree / folder, ignore_errors=True)
        say(f"importing it as {name}")
        _import_tree(api, tree, name)
    there = _find(api, name)
    if there is None:
        raise SandboxError(f"The engine imported {name} but does not have it.")
    return there


def _import_tree(api: Any, tree: Path, name: str) -> None:
    repository, _, tag = name.partition(":")
    with tempfile.TemporaryFile(dir=tree.parent) as archive:
        _run_logged(
            ["tar", "-C", str(tree), "--numeric-owner", "--exclude=./proc/*", "-c", "."],
            timeout_s=DEBOOTSTRAP_TIMEOUT_S,
            what="Packing the base image",
            stdout=archive,
        )
        archive.seek(0)
        # As an iterator: docker-py announces chunks, and requests sends them only for one.
        pieces = iter(lambda: archive.read(1 << 20), b"")
        try:
            answer = api.import_image_from_stream(
                pieces, repository=repository, tag=tag, changes=[f"LABEL {LABEL}=base"]
            )
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise _failed(f"The engine did not import {name}: {error}", ()) from error
    # The engine answers 200 and reports a failure in the stream.
    if '"error"' in str(answer):
        raise _failed(f"The engine did not import {name}.", [str(answer)[-500:]])


def _apt_sources() -> tuple[str, dict[str, str]]:
    """Return the distribution's id and, by release name, the mirror that apt itself uses."""
    try:
        distribution = platform.freedesktop_os_release().get("ID", "")
        listed = subprocess.run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(RELEASE) $(COMPONENT) $(REPO_URI)",
                "Created-By: Packages",
            ],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "", {}
    mirrors = _main_mirrors(listed)
    return (distribution, mirrors) if mirrors else ("", {})


def _main_mirrors(listed: str) -> dict[str, str]:
    """Return the first mirror of each release's ``main`` from lines "RELEASE COMPONENT URI"."""
    mirrors: dict[str, str] = {}
    for line in listed.splitlines():
        release, component, uri = line.split(" ", 2)
        if component == "main":
            mirrors.setdefault(release, uri)
    return mirrors


def _python_of(api: Any, image: str, minor: str) -> str:
    """Return the full version of the image's python3, refused when its minor is another one."""
    container = None
    try:
        container = api.create_container(
            image,
            ["python3", "-I", "-c", "import platform; print(platform.python_version())"],
            network_disabled=True,
            host_config=api.create_host_config(network_mode="none"),
            labels={LABEL: "probe"},
        )
        api.start(container)
        code = api.wait(container)["StatusCode"]
        answer = api.logs(container).decode(errors="replace").strip()
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise SandboxError(f"A first container could not be started: {error}") from error
    finally:
        if container is not None:
            api.remove_container(container, force=True)
    if code != 0 or _minor_of(answer) != minor:
        raise SandboxError(
            f"The base image answers {answer[-200:]!r} where Python {minor} was expected.",
            hint="Remove that image with `docker rmi` and run `gridx-worker image` again.",
        )
    return str(answer)


# ---------------------------------------------------------------- the wheels


def _wheel_machine(machine: str) -> str:
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine.lower())


def wheel_platforms(machine: str) -> list[str]:
    """Return the wheel platforms that a Debian 12 or newer image on ``machine`` can load."""
    name = _wheel_machine(machine)
    # PEP 600: glibc 2.36 runs every older one, down to the first that has this architecture.
    newer = [f"manylinux_2_{minor}_{name}" for minor in range(36, 16, -1)]
    older = [f"manylinux_2_{minor}_{name}" for minor in (12, 5)] if name == "x86_64" else []
    return [*newer, f"manylinux2014_{name}", *older, f"linux_{name}"]


def _install_wheels(site: Path, minor: str, machine: str, say: Progress) -> None:
    say("fetching the wheels of worker/runtime/requirements.txt")
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--target", str(site), "--no-deps", "--no-compile", "--only-binary=:all:"),
        *("--implementation", "cp", "--python-version", minor),
        *(word for name in wheel_platforms(machine) for word in ("--platform", name)),
        *("--requirement", str(RUNTIME_DIR / "requirements.txt")),
    ]
    _run_logged(
        command,
        timeout_s=PIP_TIMEOUT_S,
        what="Fetching the image's packages",
        hint="pip needs its package index (`python -m pip --version` must work, too).",
    )


def _run_logged(
    command: Sequence[str],
    *,
    timeout_s: float,
    what: str,
    hint: str | None = None,
    stdout: IO[bytes] | None = None,
) -> None:
    """Run ``command``; a failure carries the last lines of what it wrote."""
    with tempfile.TemporaryFile() as log:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _failed(f"{what} took more than {timeout_s:.0f} s.", (), hint) from error
        except OSError as error:
            raise _failed(f"{what} could not start: {error}", (), hint) from error
        if done.returncode != 0:
            log.seek(max(0, log.tell() - 4096))
            tail = log.read().decode(errors="replace").splitlines()[-15:]
            raise _failed(f"{what} failed with exit code {done.returncode}.", tail, hint)


# ---------------------------------------------------------------- one build at a time


@contextmanager
def _build_lock(say: Progress) -> Iterator[None]:
    """Let one process of this user build at a time; the others wait and find the result."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gridx"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "image.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process builds the image; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _progress_to_stderr() -> Progress:
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"image [{time.monotonic() - began:5.1f} s] {line}", file=sys.stderr, flush=True)

    return say


# ---------------------------------------------------------------- command line


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gridx-worker image`: build the default image when it is missing, print its tag."""
    parser = argparse.ArgumentParser(
        prog="gridx-worker image",
        description="Build the sandbox image when this engine lacks it, and print its tag.",
    )
    parser.add_argument(
        "--python", default=current_python_minor(), metavar="MINOR", help="default: %(default)s"
    )
    parser.add_argument("--rebuild", action="store_true", help="build the last layer anew")
    parser.add_argument("--json", action="store_true", help="print tag, id and manifest as JSON")
    options = parser.parse_args(argv)
    try:
        info = ensure_image(engine_client(), options.python, rebuild=options.rebuild)
    except SandboxError as error:
        print(f"{error.message}\n{error.hint}", file=sys.stderr)
        return 1
    print(json.dumps(msgspec.to_builtins(info), indent=2) if options.json else info.tag)
    return 0


if __name__ == "__main__":
    sys.exit(main())
