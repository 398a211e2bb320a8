"""A Docker engine of a test's own, which it may kill, stop and start: never the one in use.

It holds a copy of the sandbox image and knows the runtime ``runsc`` where that is installed.
Needs root and Docker's daemon program, as the private engine of ``scripts/docker_engine.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psutil

from worker.images import engine_client, ensure_image

from .scripts import load_script

docker_engine = load_script("docker_engine")


class SecondEngine:
    """One engine, and the ways in which it can be in trouble."""

    def __init__(self, private: Any) -> None:
        self._private = private

    @property
    def host(self) -> str:
        """Its DOCKER_HOST."""
        return str(self._private.host)

    @property
    def pid(self) -> int:
        pid = self._private.pid()
        assert pid is not None, "the second engine does not run"
        return int(pid)

    @property
    def rss_bytes(self) -> int:
        """Memory of the engine's own process."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def client(self) -> Any:
        return engine_client(host=self.host)

    def runtimes(self) -> Mapping[str, Any]:
        with closing(self.client()) as api:
            found: Mapping[str, Any] = api.info()["Runtimes"]
        return found

    def containers(self, worker_id: str, *, all: bool = True) -> set[str]:
        """Return the ids of a worker's containers."""
        label = {"label": f"gridx.worker={worker_id}"}
        with closing(self.client()) as api:
            return {entry["Id"] for entry in api.containers(all=all, filters=label)}

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let it answer nobody for a while."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def end(self, number: int = signal.SIGKILL) -> None:
        """End it by a signal, and return when it is gone; its containers are left to themselves."""
        docker_engine.end_private(self._private, number)

    def start(self) -> None:
        """Start it again, as a service manager does: again when it fails. Return when it answers.

        After a SIGKILL under load its containerd first waits for what the dead one has left, and
        the first start may run into a time limit of the engine's own.
        """
        for tries_left in (2, 1, 0):
            try:
                docker_engine.start_private(self._private)
                return
            except docker_engine.EngineUnavailable:
                if not tries_left:
                    raise


@contextmanager
def second_engine() -> Iterator[SecondEngine]:
    """Start one, with the sandbox image of the engine in use, and remove all of it afterwards.

    Raises:
        RuntimeError: this user may not start one; the text says what to do.
    """
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        raise RuntimeError(
            "These tests kill and restart a Docker engine of their own. Run them as root on a"
            " machine with dockerd (Debian's docker.io), as `make test` in CI does."
        )
    folder = Path(tempfile.mkdtemp(prefix="gridx-engine-"))
    private = docker_engine.Private(data=folder / "data", state=folder / "state")
    try:
        docker_engine.start_private(private)
        engine = SecondEngine(private)
        _copy_image(engine)
        yield engine
    finally:
        if private.pid() is None and private.state.exists():
            SecondEngine(private).start()  # a killed one has left its containers behind
        docker_engine.stop_private(private)
        shutil.rmtree(folder, ignore_errors=True)


def _copy_image(engine: SecondEngine) -> None:
    with closing(engine_client(timeout_s=300.0)) as source:
        tag = ensure_image(source).tag
        with closing(engine_client(timeout_s=300.0, host=engine.host)) as target:
            target.load_image(source.get_image(tag))
