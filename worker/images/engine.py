"""The Docker engine that keeps the images, and what it says about them."""

from __future__ import annotations

import re
import socket
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import docker
import docker.errors
import docker.utils
import msgspec
import requests

from gridx.errors import SandboxError

from .manifest import LABEL, MANIFEST_LABEL, ImageInfo, ImageManifest, Kind

DEFAULT_SOCKET: Final = "unix:///var/run/docker.sock"
REGISTRY_TIMEOUT_S: Final = 10.0
PULL_TIMEOUT_S: Final = 600.0

REFUSALS: Final = (docker.errors.DockerException, requests.RequestException)

Progress = Callable[[str], None]


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


def inspect(api: Any, name: str) -> dict[str, Any] | None:
    """Return the engine's description of the image ``name``; None when it has none."""
    try:
        found: dict[str, Any] = api.inspect_image(name)
    except docker.errors.ImageNotFound:
        return None
    return found


def find_image(api: Any, tag: str) -> ImageInfo | None:
    """Return the image named ``tag`` when this engine has it and it carries a manifest."""
    found = inspect(api, tag)
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


def labels_of(description: dict[str, Any]) -> dict[str, str]:
    """Return the labels in the engine's description of an image."""
    return dict((description.get("Config") or {}).get("Labels") or {})


def answer_of(api: Any, image: str, command: Sequence[str]) -> tuple[int, str]:
    """Return how ``command`` ends in a container of ``image`` without a network, and what it
    prints.

    Raises:
        SandboxError: the container could not be started.
    """
    container = None
    try:
        container = api.create_container(
            image,
            list(command),
            network_disabled=True,
            user="65534:65534",
            host_config=api.create_host_config(network_mode="none", cap_drop=["ALL"]),
            labels={LABEL: Kind.PROBE},
        )
        api.start(container)
        code = int(api.wait(container)["StatusCode"])
        return code, api.logs(container).decode(errors="replace").strip()
    except REFUSALS as error:
        raise SandboxError(f"A first container could not be started: {error}") from error
    finally:
        if container is not None:
            api.remove_container(container, force=True)


def file_of(api: Any, image: str, path: str) -> bytes:
    """Return one file of ``image``.

    Raises:
        SandboxError: it has no such file.
    """
    container = None
    try:
        container = api.create_container(image, ["true"], labels={LABEL: Kind.PROBE})
        pieces, _ = api.get_archive(container, path)
        with tempfile.TemporaryFile() as archive:
            for piece in pieces:
                archive.write(piece)
            archive.seek(0)
            with tarfile.open(fileobj=archive) as tar:
                file = tar.extractfile(tar.next() or tarfile.TarInfo())
                if file is None:
                    raise SandboxError(f"{path} of {image} is no file.")
                return file.read()
    except REFUSALS as error:
        raise SandboxError(f"{path} of {image} could not be read: {error}") from error
    finally:
        if container is not None:
            api.remove_container(container, force=True)


def registry_answers(api: Any, name: str) -> bool:
    """Return whether the registry knows ``name``, within ``REGISTRY_TIMEOUT_S``."""
    before = api.timeout
    api.timeout = REGISTRY_TIMEOUT_S
    try:
        api.inspect_distribution(name)
    except REFUSALS:
        return False
    finally:
        api.timeout = before
    return True


def pull(api: Any, name: str) -> bool:
    """Return whether the image ``name`` could be pulled."""
    repository, _, tag = name.rpartition(":") if ":" in name else (name, "", "latest")
    before = api.timeout
    api.timeout = PULL_TIMEOUT_S
    try:
        return not any(
            "error" in line for line in api.pull(repository, tag=tag, stream=True, decode=True)
        )
    except REFUSALS:
        return False
    finally:
        api.timeout = before


def failed(sentence: str, log: Iterable[str], hint: str | None = None) -> SandboxError:
    """Return the error of a step, with the last lines that it wrote."""
    tail = "\n".join(line for line in log if line.strip())
    return SandboxError(
        sentence + (f"\n{tail}" if tail else ""),
        hint=hint or "Correct what the lines above name, then run `gridx-worker image` again.",
    )
