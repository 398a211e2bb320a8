"""Engines that keep images by name and answer as the real one does, or fail in one way."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

import docker.errors
import msgspec

from worker.images import ImageManifest
from worker.images.engine import REGISTRY_TIMEOUT_S
from worker.images.manifest import MANIFEST_LABEL

MANIFEST = ImageManifest(
    python="3.11.2", platform="linux/x86_64", packages={"numpy": "2.4.6"}, base="sha256:b"
)


class ImageEngine:
    """An engine that keeps images by name and answers as the real one does."""

    def __init__(self, **there: ImageManifest) -> None:
        self.timeout = 60.0
        self.images_by_name: dict[str, dict[str, Any]] = {}
        self.builds: list[dict[str, Any]] = []
        self.contexts: list[dict[str, bytes]] = []
        self.live: list[str] = []  # ids of images that a container was made of
        self.removed: list[str] = []
        for name, manifest in there.items():
            self.add(name, manifest)

    def add(
        self,
        name: str,
        manifest: ImageManifest,
        *,
        kind: str = "python",
        created: int = 0,
        size_bytes: int = 0,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        label = {
            MANIFEST_LABEL: msgspec.json.encode(manifest).decode(),
            "gridx.image": kind,
            **(labels or {}),
        }
        self.images_by_name[name] = {
            "Id": f"sha256:{name}",
            "Config": {"Labels": label},
            "Created": created,
            "Size": size_bytes,
        }

    def inspect_image(self, name: str) -> dict[str, Any]:
        for tag, found in self.images_by_name.items():
            if name in (tag, found["Id"]):
                return found
        raise docker.errors.ImageNotFound(name)

    def images(self, name: str = "", filters: Any = None) -> list[dict[str, Any]]:
        _, _, kind = str((filters or {}).get("label", "")).partition("=")
        return [
            {
                "Id": found["Id"],
                "RepoTags": [tag],
                "Created": found["Created"],
                "Size": found["Size"],
                "Labels": found["Config"]["Labels"],
            }
            for tag, found in self.images_by_name.items()
            if tag.partition(":")[0] == (name or tag.partition(":")[0])
            and (not kind or (found["Config"]["Labels"] or {}).get("gridx.image") == kind)
        ]

    def containers(self, **_: Any) -> list[dict[str, Any]]:
        return [{"ImageID": image} for image in self.live]

    def remove_image(self, name: str) -> None:
        del self.images_by_name[name]
        self.removed.append(name)

    def build(self, *, fileobj: Any, tag: str, labels: dict[str, str], **options: Any) -> Any:
        self.builds.append({"tag": tag, "labels": labels, **options})
        with tarfile.open(fileobj=io.BytesIO(fileobj.read())) as tar:
            files = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
            self.contexts.append({name: file.read() for name, file in files.items() if file})
        self.images_by_name[tag] = {
            "Id": f"sha256:{tag}",
            "Config": {"Labels": labels},
            "Created": 0,
            "Size": 0,
        }
        return self.say()

    def say(self) -> Iterator[dict[str, str]]:
        yield {"stream": "Step 1/2"}
        yield {"stream": "done"}


class EngineThatFailsAStep(ImageEngine):
    """Answers 200 to a build and reports in its stream that a step failed."""

    def say(self) -> Iterator[dict[str, str]]:
        yield {"stream": "Step 5/7 : RUN compile"}
        yield {"error": "exit code 3"}


class EngineWithoutRegistry(ImageEngine):
    """No registry answers it."""

    def inspect_distribution(self, _: str) -> dict[str, Any]:
        assert self.timeout == REGISTRY_TIMEOUT_S
        raise docker.errors.APIError("no such host")
