"""pip, started so that it can neither start a program nor use more than it was given.

Run as `python -I -c SOURCE MEMORY_BYTES FILE_BYTES pip-arguments...`. A package that is no wheel
is built by programs that pip starts; a dependency may name one by its address, which
--only-binary does not cover. So no program can be started at all.
"""

from __future__ import annotations

import resource
import runpy
import sys


def _refuse(event: str, _arguments: object) -> None:
    if event in _STARTS_A_PROGRAM:
        raise OSError("no program is started while packages are resolved")


_STARTS_A_PROGRAM = {
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "os.system",
    "pty.spawn",
    "subprocess.Popen",
}

if __name__ == "__main__":
    memory_bytes, file_bytes = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = ["pip", *sys.argv[3:]]
    sys.addaudithook(_refuse)
    runpy.run_module("pip", run_name="__main__", alter_sys=True)
