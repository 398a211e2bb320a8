"""The job's process as its supervisor holds it, and the end of whatever it leaves behind."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import resource
import signal
import socket
import termios
import time
from typing import Final

from .child import ChildOptions, ChildPipes, run_child

STRAYS_WAIT_S: Final = 2.0


class JobProcess:
    """The job's process and the supervisor's ends of its pipes."""

    def __init__(self, options: ChildOptions) -> None:
        # A socket, because the pipes of a session's next call travel with it. It is one way.
        self._channel, job_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._channel.shutdown(socket.SHUT_RD)
        self.job_write, job_read = self._channel.fileno(), job_end.detach()
        self.record_read, record_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        self.output_reads = (out_read, err_read)
        end_read, end_write = os.pipe()
        self._watch_by_signal(end_write)
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            run_child(
                ChildPipes(job_read, record_write, out_read, out_write, err_read, err_write),
                options,
            )
        for fd in (job_read, record_write, out_write, err_write):
            os.close(fd)
        for fd in (self.job_write, self.record_read, *self.output_reads):
            os.set_blocking(fd, False)
        self.pidfd = self._open_end(end_read, end_write)

    def _watch_by_signal(self, end_write: int) -> None:
        """Have a byte written when the process has ended. Before the fork: it may end at once."""
        os.set_blocking(end_write, False)

        def look(number: int, frame: object) -> None:
            try:
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    os.write(end_write, b"e")
            except (AttributeError, OSError):
                pass  # it has no id yet, or is reaped, or has been told

        signal.signal(signal.SIGCHLD, look)

    def _open_end(self, end_read: int, end_write: int) -> int:
        """Return what can be read when the process has ended."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            # gVisor has none in its older releases.
            os.kill(os.getpid(), signal.SIGCHLD)  # it may have ended before it had its id
            return end_read
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(end_read)
        os.close(end_write)
        return pidfd

    def send_with_pipes(self, data: bytes | memoryview) -> int:
        """Write to the job's process, with pipes for its next call; return how much was written.

        The read ends of the call before are closed here: the process keeps its own.

        Raises:
            BlockingIOError: nothing can be written now; nothing was made.
            OSError: the process has ended.
        """
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        reads = (out_read, err_read)
        try:
            written = socket.send_fds(self._channel, [data], [*reads, out_write, err_write])
        except OSError:
            for fd in reads:
                os.close(fd)
            raise
        finally:
            os.close(out_write)
            os.close(err_write)
        for fd in self.output_reads:
            os.close(fd)
        self.output_reads = reads
        for fd in reads:
            os.set_blocking(fd, False)
        return written

    def interrupt(self) -> None:
        """Send SIGINT to the process and what it started in its group, as to a kernel."""
        try:
            os.killpg(self.pid, signal.SIGINT)
        except ProcessLookupError:  # it has ended, and is not reaped yet
            pass

    def kill(self) -> None:
        """Kill the process itself. It is not reaped before its end is read, so the id is its own."""
        os.kill(self.pid, signal.SIGKILL)

    def fullest(self) -> float:
        """Return how full the fuller of its output pipes is, in [0, 1]."""
        waiting = array.array("i", [0])
        most = 0
        for fd in self.output_reads:
            fcntl.ioctl(fd, termios.FIONREAD, waiting)
            most = max(most, waiting[0])
        return most / fcntl.fcntl(self.output_reads[0], fcntl.F_GETPIPE_SZ)


def kill_strays(*, alone: bool) -> list[resource.struct_rusage]:
    """Kill everything that the job left behind; return what the reaped ones used.

    Args:
        alone: this is PID 1 of a container, so all other processes in it are the job's.
    """
    reaped: list[resource.struct_rusage] = []
    end_s = time.monotonic() + STRAYS_WAIT_S
    while True:
        if alone:
            try:
                os.kill(-1, signal.SIGKILL)
            except ProcessLookupError:
                pass
        else:
            for pid in descendants(os.getpid()):
                _kill_if_there(pid)
        try:
            while True:
                pid, _, usage = os.wait4(-1, os.WNOHANG)
                if pid == 0:
                    break
                reaped.append(usage)
        except ChildProcessError:
            return reaped
        if time.monotonic() >= end_s:
            return reaped
        time.sleep(0.0005)  # killed, and the kernel is at it


def descendants(root: int) -> list[int]:
    """Return the processes below ``root``, as the kernel's tables show them now."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                after_name = file.read().rpartition(b")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        parents.setdefault(int(after_name[1]), []).append(int(name))
    found: list[int] = []
    waiting = [root]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _kill_if_there(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError:  # it ended meanwhile
        pass
