"""Files that are not the job's, devices, and the kernel's own switches."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.hostile_cells import HostileCells

pytestmark = pytest.mark.docker

READ_ONLY = (
    "/x",
    "/etc/x",
    "/etc/passwd",
    "/usr/x",
    "/usr/bin/python3",
    "/opt/x",
    "/opt/gridx/lib/gridx_runtime/supervisor.py",
    "/dev/x",
    "/var/tmp/x",
    "/run/x",
    "/root/x",
    "/in/x",
    "/sys/kernel/mm/ksm/run",
    "/sys/kernel/uevent_helper",
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/hostname",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
    "/proc/1/oom_score_adj",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    "/sys/fs/cgroup/memory/cgroup.procs",
    "/sys/fs/cgroup/pids/pids.max",
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/cgroup.procs",
)
REFUSED = {"EROFS", "EACCES", "EPERM", "ENOENT"}
DEVICES = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts"}
NOT_DEVICES = {"stdin", "stdout", "stderr", "fd", "shm", "mqueue", "core"}


@pytest.fixture(scope="module")
def files(cells: HostileCells) -> dict[str, Any]:
    """What a job may read, write and make."""
    return cells.probe(
        f"""
import stat, subprocess
rows = [line.split(" - ")[0].split() for line in read("/proc/self/mountinfo").splitlines()]
work = os.stat("/work")
def ran():
    with open("/work/run", "w") as file:
        file.write("#!/bin/sh\\nexit 0\\n")
    os.chmod("/work/run", 0o755)
    subprocess.run(["/work/run"])
say(
    written={{path: tried(open, path, "a") for path in {READ_ONLY!r}}},
    mounts={{row[4]: [row[5].split(","), row[6:]] for row in rows}},
    devices=os.listdir("/dev"),
    made=[tried(os.mknod, "/work/sda", 0o660 | stat.S_IFBLK, os.makedev(8, 0)),
          tried(os.mknod, "/work/mem", 0o660 | stat.S_IFCHR, os.makedev(1, 1))],
    opened={{path: tried(open, path) for path in
            ("/dev/mem", "/dev/kvm", "/dev/fuse", "/dev/vda", "/dev/sda", "/dev/kmsg")}},
    sockets={{path: os.path.exists(path) for path in
             ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock")}},
    kcore=(lambda text: text if text.startswith("E") and len(text) < 9 else len(text))(
        read("/proc/kcore")[:100]),
    core=read("/proc/sys/kernel/core_pattern") != "",
    work=[work.st_uid == os.getuid(), work.st_gid == os.getgid(), oct(work.st_mode & 0o7777)],
    folder=os.getcwd(),
    own={{path: tried(open, path, "w") for path in ("/work/a", "/tmp/a", "/dev/shm/a")}},
    ran=tried(ran),
    links=tried(os.link, "/etc/passwd", "/work/passwd"),
)
"""
    )


@pytest.mark.parametrize("path", READ_ONLY)
def test_a_file_that_is_not_the_jobs_cannot_be_written(files: dict[str, Any], path: str) -> None:
    assert files["written"][path] in REFUSED


@pytest.mark.guards("ReadonlyRootfs")
def test_the_root_is_read_only(files: dict[str, Any]) -> None:
    assert "ro" in files["mounts"]["/"][0]


@pytest.mark.guards("Mounts ReadOnly")
def test_the_inputs_are_read_only(files: dict[str, Any]) -> None:
    assert "ro" in files["mounts"]["/in"][0]


def test_later_mounts_of_the_machine_do_not_reach_the_inputs(files: dict[str, Any]) -> None:
    assert files["mounts"]["/in"][1] == []  # neither shared with nor slave to one of the machine


def test_the_kernels_own_folders_are_read_only(files: dict[str, Any]) -> None:
    mounts = files["mounts"]
    assert "ro" in mounts["/sys"][0]
    assert "ro" in mounts["/proc/sys"][0]
    groups = [path for path in mounts if path.startswith("/sys/fs/cgroup/")]
    assert all("ro" in mounts[path][0] for path in groups or ["/sys/fs/cgroup"])


@pytest.mark.guards("Privileged")
def test_the_devices_are_those_of_every_container(files: dict[str, Any]) -> None:
    assert set(files["devices"]) - NOT_DEVICES <= DEVICES


def test_no_device_is_made_or_opened(files: dict[str, Any]) -> None:
    assert set(files["made"]) == {"EPERM"}
    assert set(files["opened"].values()) <= {"ENOENT", "EPERM", "EACCES"}


def test_the_engines_socket_is_not_there(files: dict[str, Any]) -> None:
    assert not any(files["sockets"].values())


def test_the_kernels_memory_is_not_readable(files: dict[str, Any]) -> None:
    assert files["kcore"] in (*REFUSED, 0)


@pytest.mark.guards("Tmpfs /work uid")
def test_the_work_folder_is_the_jobs(files: dict[str, Any]) -> None:
    assert files["work"][0]
    assert files["folder"] == "/work"


@pytest.mark.guards("Tmpfs /work gid")
def test_the_work_folder_is_of_the_jobs_group(files: dict[str, Any]) -> None:
    assert files["work"][1]


@pytest.mark.guards("Tmpfs /work mode")
def test_the_work_folder_is_nobody_elses(files: dict[str, Any]) -> None:
    assert files["work"][2] == "0o700"


@pytest.mark.parametrize("path", ["/work/a", "/tmp/a", "/dev/shm/a"])
def test_a_job_writes_to_its_own_folders(files: dict[str, Any], path: str) -> None:
    assert files["own"][path] == "done"


@pytest.mark.guards("Tmpfs /work noexec")
def test_a_program_that_the_job_has_written_is_not_run(files: dict[str, Any]) -> None:
    assert files["ran"] == "EACCES"


def test_files_of_the_image_cannot_be_linked_to(files: dict[str, Any]) -> None:
    assert files["links"] in {"EXDEV", "EPERM", "EACCES"}


@pytest.mark.guards("Ulimits core")
def test_a_crash_leaves_no_core(cells: HostileCells) -> None:
    found = cells.probe(
        """
import signal
if os.fork() == 0:
    os.chdir("/work")
    os.kill(os.getpid(), signal.SIGSEGV)
status = os.wait()[1]
say(died=os.WTERMSIG(status), dumped=os.WCOREDUMP(status), left=os.listdir("/work"))
"""
    )
    assert found == {"died": 11, "dumped": False, "left": []}
