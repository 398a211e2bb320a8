"""The supervisor outside a container: it leaves the machine as far as it can, and can tell how far.

``--probe`` does to a process what is done to a job's, and prints what that process then finds:
the worker announces nothing else about its process sandbox.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from typing import TYPE_CHECKING, Any, Final

from . import syscalls
from .facts import facts
from .namespaces import Places, enter, readable_places

if TYPE_CHECKING:
    from .supervisor import Options

_FORKS_MORE: Final = 8  # than the limit: then there is none


def leave_the_machine(options: Options) -> None:
    """Enter the namespaces that the command line names.

    Raises:
        OSError: the kernel refuses one.
    """
    places = Places(
        work=os.getcwd(),
        work_bytes=options.work_bytes,
        keep=(*options.keep, *readable_places()),
        hide=options.hide,
    )
    enter(options.namespaces, places)


def probe(out_fd: int, options: Options) -> int:
    """Write what a job of these options would find, as JSON."""
    syscalls.set_dumpable(False)
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    code = 1
    try:
        unreadable = [path for path in readable_places() if not os.access(path, os.R_OK)]
        for number, value in options.limits:
            resource.setrlimit(number, (value, value))
        syscalls.set_dumpable(True)
        if options.filtered:
            syscalls.install()
        inputs = options.keep[0] if options.keep else ""
        found: dict[str, Any] = facts(os.getcwd(), inputs, most_bytes=options.work_bytes)
        found["unreadable"] = unreadable
        found["forks"] = forks(dict(options.limits).get(resource.RLIMIT_NPROC, 0))
        found["home_is_writable"] = os.access(os.path.expanduser("~" + _user()), os.W_OK)
        found["hidden"] = all(not os.listdir(path) for path in options.hide if os.path.isdir(path))
        data = json.dumps(found).encode()
        while data:
            data = data[os.write(out_fd, data) :]
        code = 0
    finally:
        os._exit(code)


def forks(limit: int) -> list[int]:
    """Start processes until it fails; return how many there were, and the error or 0."""
    pids: list[int] = []
    error_number = 0
    try:
        while len(pids) < limit + _FORKS_MORE:
            pid = os.fork()
            if pid == 0:
                while True:
                    time.sleep(60)
            pids.append(pid)
    except OSError as error:
        error_number = error.errno or errno.EAGAIN
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)
    return [len(pids), error_number]


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""
