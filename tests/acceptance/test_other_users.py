"""Another user of the lender's machine comes near neither the worker's data nor a job's inputs.

The other user is a container with another uid that sees the folders as the machine has them; the
folder above is open to everybody, so what holds is what the worker itself has closed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gridx.ids import new_worker_id
from worker.blob_cache import BlobCache
from worker.home import Home
from worker.outbox import Outbox
from worker.sandbox.base import DEFAULT_REQUEST
from worker.sandbox.docker import DockerEngine
from worker.transfers import BlobTransfers

pytestmark = pytest.mark.docker

_LOOK = """
import json, os
seen = []
for folder, _, files in os.walk("/theirs", onerror=lambda error: seen.append(error.errno)):
    for name in files:
        path = os.path.join(folder, name)
        try:
            open(path, "rb").read()
            seen.append(path)
        except OSError as error:
            seen.append(error.errno)
print(json.dumps(seen))
"""


def as_another_user(api: Any, image: str, folder: Path) -> list[object]:
    """Return what a user with no right to ``folder`` can read below it, and the errors it gets."""
    mount = {"Type": "bind", "Source": str(folder), "Target": "/theirs", "ReadOnly": True}
    created = api.create_container_from_config(
        {
            "Image": image,
            "Cmd": ["python3", "-I", "-c", _LOOK],
            "User": "54321:54321",
            "Labels": {"gridx.test": "other-user"},
            "NetworkDisabled": True,
            "HostConfig": {"NetworkMode": "none", "Mounts": [mount]},
        }
    )
    try:
        api.start(created["Id"])
        api.wait(created["Id"], timeout=60)
        said: list[object] = json.loads(api.logs(created["Id"], stdout=True, stderr=False))
        return said
    finally:
        api.remove_container(created["Id"], force=True)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody may enter, as a data folder that somebody has made beforehand."""
    tmp_path.chmod(0o755)
    return tmp_path


async def test_another_user_reads_nothing_of_the_workers(docker_api: Any, shared: Path) -> None:
    (shared / "open").write_text("to be read")
    (shared / "open").chmod(0o644)
    home = Home(shared / "data")
    blob = shared / "data" / "blob"
    blob.write_text("secret")
    blob.chmod(0o444)
    engine = DockerEngine(
        worker_id=new_worker_id(), slots=home.slots, self_test=home.folder / "self-test.json"
    )
    try:
        await engine.prepare()
        sandbox = await engine.start(DEFAULT_REQUEST)
        await sandbox.put_inputs({"secret": blob})
        image = engine.images[0].digest
        assert as_another_user(docker_api, image, shared) == ["/theirs/open", 13]
    finally:
        await engine.close()
        home.close()


async def test_a_data_folder_that_was_open_before_has_closed_ones_inside(
    docker_api: Any, shared: Path
) -> None:
    home = Home(shared)
    transfers = BlobTransfers()
    BlobCache(home.blobs, transfers, limit_bytes=1 << 20)
    Outbox(home.outbox).close()
    home.keep_token("anna", "ws://a", "gxw_1")
    engine = DockerEngine(worker_id=new_worker_id(), slots=home.slots)
    try:
        await engine.prepare()
        sandbox = await engine.start(DEFAULT_REQUEST)
        blob = home.blobs / "blob"
        blob.write_text("secret")
        blob.chmod(0o444)
        await sandbox.put_inputs({"secret": blob})
        seen = as_another_user(docker_api, engine.images[0].digest, shared)
        assert set(seen) == {13}
    finally:
        await engine.close()
        transfers.close()
        home.close()


async def test_without_a_data_folder_the_inputs_are_closed_too(
    docker_api: Any, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    secret = shared / "secret"
    secret.write_text("secret")
    secret.chmod(0o400)
    engine = DockerEngine(worker_id=new_worker_id())
    try:
        await engine.prepare()
        sandbox = await engine.start(DEFAULT_REQUEST)
        await sandbox.put_inputs({"secret": secret})
        seen = as_another_user(docker_api, engine.images[0].digest, shared)
        assert set(seen) == {13}
        assert len(seen) >= 2  # the file, and the folder of the slots
    finally:
        await engine.close()
