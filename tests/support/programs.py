"""The real programs as child processes, for acceptance tests, the demo's checks and benchmarks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Self

import requests

from worker.images import engine_client

READY_WITHIN_S = 120.0
PASSWORD = "secret123"


class ProgramDied(RuntimeError):
    """A program ended before it said that it was ready; the message holds its last lines."""


class Program:
    """One child process that prints a ready line; its output is kept for a failed test."""

    def __init__(
        self, argv: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None
    ):
        self.argv = argv
        self.lines: list[str] = []
        self._ready: Queue[str] = Queue()
        self.process = subprocess.Popen(
            argv,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            bufsize=1,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (self.process.stdout, self.process.stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Any) -> None:
        with stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))
                if line.startswith("ready "):
                    self._ready.put(line.strip())
        self._ready.put("")

    def wait_ready(self, within_s: float = READY_WITHIN_S) -> dict[str, str]:
        """Return the fields of the ready line."""
        deadline, ended = time.monotonic() + within_s, 0
        while ended < 2:
            try:
                line = self._ready.get(timeout=max(0.01, deadline - time.monotonic()))
            except Empty:
                break
            if line:
                return dict(re.findall(r"(\w+)=(\S+)", line))
            ended += 1
        self.kill()
        raise ProgramDied(" ".join(self.argv) + "\n" + "\n".join(self.lines[-40:]))

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        for reader in self._readers:
            reader.join(10)

    def stop(self, within_s: float = 30.0) -> int:
        """End it in order and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(within_s)
            for reader in self._readers:
                reader.join(10)
            return code
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.kill()


class Coordinator(Program):
    """``python -m coordinator.main`` on free ports, or on the ports of ``like``."""

    def __init__(
        self, data_dir: Path, *options: str, like: Coordinator | None = None, **kwargs: Any
    ):
        http_port = like.http_url.rsplit(":", 1)[1] if like else "0"
        ws_port = like.ws_url.split("/")[2].rsplit(":", 1)[1] if like else "0"
        super().__init__(
            [
                sys.executable,
                "-m",
                "coordinator.main",
                "--http-port",
                http_port,
                "--ws-port",
                ws_port,
                "--data-dir",
                str(data_dir),
                *options,
            ],
            **kwargs,
        )
        fields = self.wait_ready()
        self.http_url, self.ws_url = fields["http"], fields["ws"]

    def get(self, path: str) -> Any:
        reply = requests.get(self.http_url + path, timeout=20)
        reply.raise_for_status()
        return reply.json()

    def post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self.http_url + path, json=body, timeout=20)

    def submit(self, user: str, code: str, **limits: Any) -> str:
        body: dict[str, Any] = {"user_id": user, "code": code, "language": "python"}
        if limits:
            body["limits"] = limits
        reply = self.post("/jobs", body)
        assert reply.ok, reply.text
        job_id: str = reply.json()["job_id"]
        return job_id

    def wait_job(
        self, job_id: str, until: Callable[[Any], bool] | None = None, within_s: float = 60.0
    ) -> Any:
        """Return the job when ``until`` holds of it, by default when it has ended."""
        done = until or (lambda job: job["status"] in ("completed", "failed", "cancelled"))
        return wait_for(
            lambda: (job := self.get(f"/jobs/{job_id}")) and done(job) and job, within_s
        )


class Worker(Program):
    """``python -m worker.main`` for ``user``."""

    def __init__(
        self,
        coordinator: Coordinator,
        data_dir: Path,
        *options: str,
        user: str = "lender",
        sandbox: str = "docker",
        wait: bool = True,
        **kwargs: Any,
    ):
        super().__init__(
            [
                sys.executable,
                "-m",
                "worker.main",
                "--coordinator",
                coordinator.ws_url,
                "--user",
                user,
                "--password",
                PASSWORD,
                "--data-dir",
                str(data_dir),
                "--sandbox",
                sandbox,
                *options,
            ],
            **kwargs,
        )
        self.worker_id = self.wait_ready()["worker"] if wait else ""


def wait_for(probe: Callable[[], Any], within_s: float = 30.0) -> Any:
    """Return the first true value of ``probe``, asked again and again; fail after ``within_s``."""
    deadline = time.monotonic() + within_s
    pause = threading.Event()
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:.0f} s; last value {value!r}")
        pause.wait(0.05)


def containers_of(worker_id: str, *, running: bool = False) -> list[str]:
    """Return the ids of the containers that carry this worker's label, ended ones too."""
    api = engine_client()
    try:
        found = api.containers(all=not running, filters={"label": f"gridx.worker={worker_id}"})
        return [c["Id"] for c in found]
    finally:
        api.close()


@contextmanager
def grid(
    tmp_path: Path,
    *coordinator_options: str,
    sandbox: str = "docker",
    lender: str = "lender",
    worker_options: tuple[str, ...] = (),
) -> Iterator[tuple[Coordinator, Worker]]:
    """A coordinator and one worker, stopped in order at the end."""
    with (
        Coordinator(tmp_path / "coordinator", *coordinator_options) as coordinator,
        Worker(
            coordinator, tmp_path / "worker", *worker_options, user=lender, sandbox=sandbox
        ) as worker,
    ):
        yield coordinator, worker
