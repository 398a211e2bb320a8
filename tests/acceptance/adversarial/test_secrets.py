"""What a job can learn of its lender, of the worker, and of other jobs."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.hostile_cells import HostileCells
from worker.sandbox import limits

pytestmark = pytest.mark.docker

# Everything that a job finds in its environment. None of it is about its lender.
ENVIRONMENT = {
    *("PATH", "HOSTNAME", "HOME", "USER", "LOGNAME", "LANG", "TERM", "COLUMNS"),
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
    *("IPYTHONDIR", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONUNBUFFERED"),
    *("MPLBACKEND", "MPLCONFIGDIR", "TQDM_MININTERVAL", "GRIDX_LANGUAGE"),
}
NAMESPACES = ("pid", "net", "ipc", "uts", "mnt", "cgroup")


@pytest.fixture(scope="module")
def public(cells: HostileCells) -> dict[str, Any]:
    """What can be read, and two sandboxes at the same time: this is the second."""
    first = cells.start()
    second = cells.start()
    try:
        cells.begin(
            first,
            """
for folder in ("/work", "/tmp", "/dev/shm"):
    open(folder + "/mark", "w").close()
name = socket.socket(socket.AF_UNIX)
name.bind("\\0mark")  # an abstract name, of the network's namespace
port = socket.socket()
port.bind(("127.0.0.1", 4567))
port.listen()
segment = _libc.shmget(4567, ctypes.c_size_t(4096), 0o1666)
print("there", os.getuid(), flush=True)
time.sleep(60)
""",
        )
        found = cells.probe_in(
            second,
            f"""
says = {{path: read(path) for path in (
    "/proc/self/mountinfo", "/proc/self/cgroup", "/etc/hostname", "/etc/hosts",
    "/etc/resolv.conf", "/proc/sys/kernel/hostname", "/proc/1/cmdline", "/proc/self/cmdline")}}
say(
    environment=dict(os.environ),
    started_with=read("/proc/self/environ"),
    name=socket.gethostname(),
    says=says,
    namespaces={{name: os.readlink("/proc/self/ns/" + name) for name in {NAMESPACES!r}}},
    marks=[folder for folder in ("/work", "/tmp", "/dev/shm")
           if os.path.exists(folder + "/mark")],
    unix=tried(socket.socket(socket.AF_UNIX).connect, "\\0mark"),
    port=tried(socket.create_connection, ("127.0.0.1", 4567), 5),
    segment=_libc.shmget(4567, ctypes.c_size_t(4096), 0o666),
    processes=[name for name in os.listdir("/proc") if name.isdecimal()],
    uid=os.getuid(),
    inputs=os.listdir("/in"),
)
""",
        )
        found["first"] = cells.inspect(first)
        found["second"] = cells.inspect(second)
    finally:
        cells.kill(first, second)
    return found


@pytest.mark.guards("Env")
def test_the_environment_has_nothing_but_what_is_listed_here(public: dict[str, Any]) -> None:
    assert set(public["environment"]) <= ENVIRONMENT
    started_with = {row.partition("=")[0] for row in public["started_with"].split("\0") if row}
    assert started_with <= ENVIRONMENT


@pytest.mark.guards("Labels without secrets")
def test_the_labels_are_for_the_sweep(public: dict[str, Any], cells: HostileCells) -> None:
    labels = public["second"]["Config"]["Labels"]
    image = cells.api.inspect_image(public["second"]["Image"])["Config"]["Labels"] or {}
    known = {getattr(limits, name) for name in vars(limits) if name.endswith("_LABEL")}
    assert set(labels) - set(image) == known
    assert labels[limits.WORKER_LABEL] == cells.worker_id


@pytest.mark.guards("Hostname")
def test_the_name_is_the_same_for_every_job(public: dict[str, Any]) -> None:
    assert public["name"] == "job"
    assert public["environment"]["HOSTNAME"] == "job"
    assert public["says"]["/etc/hostname"].strip() in ("job", "ENOENT")


@pytest.mark.guards("Hostname")
def test_the_machines_own_name_is_nowhere(public: dict[str, Any]) -> None:
    own = socket.gethostname()
    assert own != public["name"]
    assert public["says"]["/proc/sys/kernel/hostname"].strip() == "job"
    assert own not in public["environment"].values()
    assert own not in public["says"]["/etc/hosts"].split()


def test_host_paths_show_in_the_list_of_mounts_and_nowhere_else(public: dict[str, Any]) -> None:
    """Where the engine keeps its layers, and the folder of the inputs: docs/security.md."""
    says = dict(public["says"])
    mounts = says.pop("/proc/self/mountinfo")
    slot = public["second"]["HostConfig"]["Mounts"][0]["Source"]
    assert slot in mounts
    assert Path(slot).parent.name not in repr((says, public["environment"]))


def test_the_container_does_not_know_its_id_by_its_control_group(public: dict[str, Any]) -> None:
    assert public["second"]["Id"] not in public["says"]["/proc/self/cgroup"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("pid"),
        pytest.param("mnt"),
        pytest.param("uts"),
        pytest.param("net", marks=pytest.mark.guards("network")),
        pytest.param("ipc", marks=pytest.mark.guards("IpcMode")),
        pytest.param("cgroup", marks=pytest.mark.guards("CgroupnsMode")),
    ],
)
def test_a_container_shares_no_namespace_with_the_machine(
    public: dict[str, Any], name: str
) -> None:
    assert public["namespaces"][name] != str(Path(f"/proc/self/ns/{name}").readlink())


@pytest.mark.guards("distinct uid", "User")
def test_two_warm_containers_have_two_uids(public: dict[str, Any]) -> None:
    uids = {public["first"]["Config"]["User"], public["second"]["Config"]["User"]}
    assert len(uids) == 2
    assert f"{public['uid']}:{public['uid']}" in uids
    assert public["uid"] >= 200_000


def test_two_sandboxes_do_not_see_each_other(public: dict[str, Any]) -> None:
    assert public["marks"] == []
    assert public["unix"] == "ECONNREFUSED"
    assert public["port"] == "ECONNREFUSED"
    assert public["segment"] == -1
    assert public["inputs"] == []
    assert len(public["processes"]) == 2  # PID 1 and the job
