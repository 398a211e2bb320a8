"""A real sandbox container for the runtime's own tests, without the worker's daemon around it.

The options are those of the production sandbox, written out here so that a test of the runtime
does not change with the code that it is meant to be started by.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker.types import LogConfig, Ulimit

from gridx.events import Event, Stream, decode_events
from gridx.resources import MIB
from worker.images import engine_client, ensure_image
from worker.runtime.frames import (
    CallExited,
    Events,
    Exited,
    Frame,
    FromSupervisor,
    Ready,
    Result,
    Run,
    encode_frame,
    from_supervisor,
)

LABEL = {"gridx.test": "runtime"}
SUPERVISOR = "/opt/gridx/lib/gridx_runtime/supervisor.py"
READ_TIMEOUT_S = 60.0  # a hung sandbox fails the test instead of the run


@dataclass
class Outcome:
    """What one call said, in order."""

    frames: list[FromSupervisor] = field(default_factory=list)

    @property
    def events(self) -> list[Event]:
        return [e for f in self.frames if isinstance(f, Events) for e in decode_events(f.data)]

    def text(self, name: str | None = None) -> str:
        """Return the text of one stream, or of both in the order in which it came."""
        streams = [e for e in self.events if isinstance(e, Stream)]
        return "".join(e.text for e in streams if name in (None, e.name))

    @property
    def stdout(self) -> str:
        return self.text("stdout")

    @property
    def stderr(self) -> str:
        return self.text("stderr")

    def of(self, kind: type[Any]) -> list[Any]:
        """Return the events of one kind."""
        return [e for e in self.events if isinstance(e, kind)]

    @property
    def exited(self) -> Exited:
        last = self.frames[-1]
        assert isinstance(last, Exited), f"the last frame is {last!r}"
        return last

    @property
    def call_exited(self) -> CallExited:
        last = self.frames[-1]
        assert isinstance(last, CallExited), f"the last frame is {last!r}"
        return last

    @property
    def result(self) -> bytes:
        pieces = [f.data for f in self.frames if isinstance(f, Result)]
        assert pieces
        return b"".join(pieces)


class Box:
    """The worker's end of one sandbox."""

    def __init__(self) -> None:
        self.received = bytearray()  # stdout of PID 1
        self.diagnostics = bytearray()  # its stderr
        self.ready: Ready | None = None

    def read_some(self) -> bool:
        """Take in what comes next; False at the end."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send bytes to PID 1."""
        raise NotImplementedError

    def hang_up(self) -> None:
        """End its stdin, as a worker that dies does."""
        raise NotImplementedError

    def frame(self) -> FromSupervisor:
        """Return the next frame.

        Raises:
            EOFError: the sandbox has ended.
        """
        while len(self.received) < 4 or len(self.received) < 4 + self._length():
            if not self.read_some():
                raise EOFError(self.diagnostics.decode(errors="replace")[-2000:])
        end = 4 + self._length()
        body = bytes(self.received[4:end])
        del self.received[:end]
        return from_supervisor.decode(body)

    def _length(self) -> int:
        return int.from_bytes(self.received[:4], "big")

    def wait_ready(self) -> Ready:
        frame = self.frame()
        if isinstance(frame, Exited):
            raise AssertionError(f"{frame.message} {self.diagnostics.decode(errors='replace')}")
        assert isinstance(frame, Ready)
        self.ready = frame
        return frame

    def send(self, frame: Frame) -> None:
        self.write(encode_frame(frame))

    def collect(self) -> Outcome:
        """Return everything up to ``Exited``."""
        outcome = Outcome()
        while not outcome.frames or not isinstance(outcome.frames[-1], Exited):
            outcome.frames.append(self.frame())
        return outcome

    def begin(self, call: int, code: str, *, timeout_s: float = 30.0, **more: Any) -> None:
        """Begin a call of a session."""
        self.send(Run(call=call, kind="cell", code=code, timeout_s=timeout_s, keep=True, **more))

    def call(self, number: int, code: str, **more: Any) -> Outcome:
        """Run a call of a session to its end, or to that of the session."""
        self.begin(number, code, **more)
        return self.collect_call()

    def collect_call(self) -> Outcome:
        """Return everything up to ``CallExited``, or to ``Exited``."""
        outcome = Outcome()
        while not outcome.frames or not isinstance(outcome.frames[-1], CallExited | Exited):
            outcome.frames.append(self.frame())
        return outcome

    def collect_until(self, text: str) -> Outcome:
        """Return everything up to the first event that holds ``text``."""
        outcome = Outcome()
        while text not in outcome.text():
            outcome.frames.append(self.frame())
        return outcome

    def run(
        self, code: str, *, kind: str = "script", timeout_s: float = 30.0, **more: Any
    ) -> Outcome:
        """Run ``code`` to its end."""
        self.send(Run(kind=kind, code=code, timeout_s=timeout_s, **more))
        return self.collect()


class ContainerBox(Box):
    """A sandbox in a container, over the engine's attach stream."""

    def __init__(self, api: Any, container: str, stream: Any) -> None:
        super().__init__()
        self.api, self.container = api, container
        self._stream = stream  # its collection would close the socket
        self._socket: socket.socket = stream._sock
        self._socket.settimeout(READ_TIMEOUT_S)
        self._raw = bytearray()

    def read_some(self) -> bool:
        data = self._socket.recv(1 << 18)
        self._raw += data
        while len(self._raw) >= 8:
            kind, length = struct.unpack(">BxxxI", self._raw[:8])
            if len(self._raw) < 8 + length:
                break
            (self.received if kind == 1 else self.diagnostics).extend(self._raw[8 : 8 + length])
            del self._raw[: 8 + length]
        return bool(data)

    def write(self, data: bytes) -> None:
        self._socket.sendall(data)

    def hang_up(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the attach stream: the response of the HTTP request holds its socket."""
        self._stream._response.close()
        self._socket.close()


class ProcessBox(Box):
    """A sandbox that is an ordinary process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        super().__init__()
        self.process = process

    def read_some(self) -> bool:
        assert self.process.stdout is not None
        data = os.read(self.process.stdout.fileno(), 1 << 18)
        self.received += data
        return bool(data)

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def hang_up(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()


@contextmanager
def container_box(
    *,
    memory_bytes: int = 512 * MIB,
    cores: float = 1.0,
    pids: int = 128,
    uid: int = 231_000,
    argv: Sequence[str] = (),
    wait: bool = True,
    image: str | None = None,
) -> Iterator[ContainerBox]:
    """Start one hardened container and remove it afterwards. Ready when yielded.

    ``image`` is a tag; the default image when None.
    """
    api = engine_client()
    image = image or ensure_image(api).tag

    def limit(name: str, value: int) -> Any:
        return Ulimit(name=name, soft=value, hard=value)

    host = api.create_host_config(
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        privileged=False,
        security_opt=["no-new-privileges:true"],
        pids_limit=pids,
        mem_limit=memory_bytes,
        memswap_limit=memory_bytes,
        nano_cpus=int(cores * 1e9),
        oom_score_adj=500,
        ipc_mode="private",
        shm_size=64 * MIB,
        cgroupns="private",
        init=False,
        log_config=LogConfig(type="none"),
        restart_policy={"Name": "no"},
        auto_remove=False,
        ulimits=[
            limit("nofile", 1024),
            limit("fsize", 256 * MIB),
            limit("core", 0),
            limit("msgqueue", 0),
        ],
        tmpfs={
            "/tmp": "rw,noexec,nosuid,nodev,size=64m,nr_inodes=16384,mode=1777",
            "/work": f"rw,noexec,nosuid,nodev,size=64m,nr_inodes=16384,uid={uid},gid={uid},mode=0700",
        },
    )
    container = api.create_container(
        image,
        ["python3", "-I", "-S", SUPERVISOR, *argv],
        user=f"{uid}:{uid}",
        stdin_open=True,
        tty=False,
        network_disabled=True,
        working_dir="/work",
        hostname="job",
        healthcheck={"test": ["NONE"]},
        environment={
            "HOME": "/tmp",
            "USER": "job",
            "LOGNAME": "job",
            "IPYTHONDIR": "/tmp/.ipython",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
        labels=LABEL,
        host_config=host,
    )["Id"]
    try:
        stream = api.attach_socket(
            container, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        )
        box = ContainerBox(api, container, stream)
        try:
            api.start(container)
            if wait:
                box.wait_ready()
            yield box
        finally:
            # First the stream: an engine whose client does not read hangs at the kill.
            box.close()
    finally:
        api.remove_container(container, force=True)
        api.close()


@contextmanager
def process_box(*argv: str, wait: bool = True) -> Iterator[ProcessBox]:
    """Start the supervisor as the process sandbox does, and end it afterwards."""
    supervisor = Path(__file__).parents[2] / "worker" / "runtime" / "supervisor.py"
    with tempfile.TemporaryDirectory(prefix="gridx-test-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", str(supervisor), "--process", *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": folder, "IPYTHONDIR": f"{folder}/.ipython"},
        )
        box = ProcessBox(process)
        try:
            if wait:
                box.wait_ready()
            yield box
        finally:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait(timeout=READ_TIMEOUT_S)
            process.stdout.close()
