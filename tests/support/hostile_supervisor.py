"""A PID 1 that an attacker has taken over: it says whatever its job's code tells it to.

    python -m tests.support.hostile_supervisor WORKER'S OPTIONS...

is the worker, whose containers run this program in the supervisor's place. It reports ready as
the real one does, takes its job, and runs the code as PID 1 itself, with all that it may write to.
"""

from __future__ import annotations

import sys
from typing import Final

_PRELUDE: Final = """\
import os, sys, time
sys.path[:0] = ["/opt/gridx/lib", "/opt/gridx/site"]
from gridx.events import *
from gridx.resources import Usage
from gridx_runtime.frames import *
def say(what):
    data = memoryview(what if isinstance(what, bytes) else encode_frame(what))
    while data:
        data = data[os.write(1, data):]
def end(cause="completed", **more):
    return Exited(cause=cause, exit_code=0, **{"usage": Usage(), **more})
"""

_TAKES_JOBS: Final = """\
say(Ready(python="3.%d.0" % sys.version_info.minor, filtered=True))
head = os.read(0, 4)
body = b""
while len(body) < int.from_bytes(head, "big"):
    body += os.read(0, int.from_bytes(head, "big") - len(body))
exec(to_supervisor.decode(body).code)
os.read(0, 1)
"""


def command(code: str) -> list[str]:
    """Return the command line of a container whose PID 1 is ``code``, with ``say`` and ``end``."""
    return ["python3", "-I", "-S", "-c", _PRELUDE + code]


def main() -> int:
    """Be a worker whose containers are taken over once its own checks are done."""
    from worker import main as worker_main
    from worker.sandbox import docker, limits

    prepare = docker.DockerEngine.prepare

    async def prepare_and_be_taken_over(self: docker.DockerEngine) -> None:
        await prepare(self)
        limits.COMMAND[:] = command(_TAKES_JOBS)

    docker.DockerEngine.prepare = prepare_and_be_taken_over  # type: ignore[method-assign]
    return worker_main.main()


if __name__ == "__main__":
    sys.exit(main())
