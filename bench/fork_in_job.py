"""PID 1 of a sandbox that forks when its job is there, for comparison with the real one.

It lies in the job's input folder and takes the place of the supervisor's own file. The child is
warm as ever; only then, and for the job alone, does it fork once more, and what must come after
a fork (the filter, the thread that reads the output) comes after it.
"""

from __future__ import annotations

import os
import select
import sys

RUNTIME = "/opt/gridx/lib"
SITE = "/opt/gridx/site"


def main() -> int:
    """Be that supervisor."""
    sys.path[:0] = [RUNTIME]
    sys.path.append(SITE)
    from importlib import import_module

    child = import_module("gridx_runtime.child")
    supervisor = import_module("gridx_runtime.supervisor")
    shut_in = child._Child.shut_in

    def fork_first(self: object, options: object) -> None:
        pipes = self._pipes  # type: ignore[attr-defined]
        self._records.send(child.WARM)  # type: ignore[attr-defined]
        select.select([pipes.job_read], [], [])
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            os._exit(0)
        self._pid = os.getpid()  # type: ignore[attr-defined]
        shut_in(self, options)

    child._Child.shut_in = fork_first
    return int(supervisor.main(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
