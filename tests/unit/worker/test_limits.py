"""The engine's options: each flag as the sandbox promises it."""

from __future__ import annotations

from typing import Any

import pytest

from gridx.errors import SandboxError
from gridx.resources import GIB, MIB, ResourceRequest
from worker.sandbox.limits import container_options, promises

GOOD_ENGINE = {
    "OSType": "linux",
    "MemoryLimit": True,
    "SwapLimit": True,
    "PidsLimit": True,
    "CpuCfsQuota": True,
    "CpuCfsPeriod": True,
    "CgroupDriver": "cgroupfs",
    "CgroupVersion": "1",
    "SecurityOptions": ["name=seccomp,profile=default"],
}


def options(request: ResourceRequest | None = None, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"image": "sha256:1", "uid": 200_007, "worker_id": "wrk_1"}
    values |= {"pool_id": "pool_1"} | more
    return container_options(request or ResourceRequest(), **values)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("NetworkMode", "none"),
        ("ReadonlyRootfs", True),
        ("CapDrop", ["ALL"]),
        ("Privileged", False),
        ("SecurityOpt", ["no-new-privileges:true"]),
        ("PidsLimit", 128),
        ("Memory", GIB),
        ("MemorySwap", GIB),
        ("NanoCpus", 1_000_000_000),
        ("OomScoreAdj", 500),
        ("IpcMode", "private"),
        ("CgroupnsMode", "private"),
        ("Init", False),
        ("LogConfig", {"Type": "none", "Config": {}}),
        ("RestartPolicy", {"Name": "no", "MaximumRetryCount": 0}),
        ("AutoRemove", False),
        (
            "Ulimits",
            [
                {"Name": "nofile", "Soft": 1024, "Hard": 1024},
                {"Name": "fsize", "Soft": 256 * MIB, "Hard": 256 * MIB},
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "msgqueue", "Soft": 0, "Hard": 0},
            ],
        ),
        (
            "Tmpfs",
            {
                "/tmp": "rw,noexec,nosuid,nodev,nr_inodes=16384,size=67108864,mode=1777",
                "/dev/shm": "rw,noexec,nosuid,nodev,nr_inodes=16384,size=67108864,"
                "uid=200007,gid=200007,mode=1777",
                "/work": "rw,noexec,nosuid,nodev,nr_inodes=16384,size=536870912,"
                "uid=200007,gid=200007,mode=0700",
            },
        ),
    ],
)
def test_the_default_size_has_this_flag(flag: str, value: object) -> None:
    assert options()["HostConfig"][flag] == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("User", "200007:200007"),
        ("OpenStdin", True),
        ("StdinOnce", True),
        ("Tty", False),
        ("NetworkDisabled", True),
        ("WorkingDir", "/work"),
        ("Hostname", "job"),
        ("Healthcheck", {"Test": ["NONE"]}),
        ("Labels", {"gridx.worker": "wrk_1", "gridx.pool": "pool_1"}),
        ("Image", "sha256:1"),
    ],
)
def test_the_container_has_this_field(field: str, value: object) -> None:
    assert options()[field] == value


def test_nothing_else_is_asked_of_the_engine() -> None:
    """No bind, device, capability, volume or host namespace creeps in unseen."""
    assert set(options()["HostConfig"]) == {
        *("NetworkMode", "ReadonlyRootfs", "CapDrop", "Privileged", "SecurityOpt", "PidsLimit"),
        *("Memory", "MemorySwap", "NanoCpus", "OomScoreAdj", "IpcMode", "CgroupnsMode"),
        *("Init", "LogConfig", "RestartPolicy", "AutoRemove", "Ulimits", "Tmpfs"),
    }


def test_the_environment_holds_no_secret_and_bounds_the_threads() -> None:
    environment = dict(entry.split("=", 1) for entry in options(ResourceRequest(cores=2.5))["Env"])
    assert environment == {
        "HOME": "/tmp",
        "USER": "job",
        "LOGNAME": "job",
        "IPYTHONDIR": "/tmp/.ipython",
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "3",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
    }


def size_of(host: dict[str, Any], folder: str) -> str:
    return dict(part.partition("=")[::2] for part in host["Tmpfs"][folder].split(","))["size"]


def test_a_job_gets_the_disk_that_it_asks_for() -> None:
    host = options(ResourceRequest(memory_bytes=2 * GIB, disk_bytes=1536 * MIB))["HostConfig"]
    assert size_of(host, "/work") == str(1536 * MIB)
    # Who asks for more than a file may have is given files of that size.
    assert {"Name": "fsize", "Soft": 1536 * MIB, "Hard": 1536 * MIB} in host["Ulimits"]
    small = options(ResourceRequest(disk_bytes=10 * MIB))["HostConfig"]
    assert size_of(small, "/work") == str(10 * MIB)
    assert {"Name": "fsize", "Soft": 256 * MIB, "Hard": 256 * MIB} in small["Ulimits"]


def test_a_disk_that_does_not_fit_into_the_memory_is_refused_with_a_way_out() -> None:
    with pytest.raises(SandboxError, match="does not fit into 1 GiB of memory") as refusal:
        options(ResourceRequest(disk_bytes=GIB))
    assert "more memory" in refusal.value.hint


def test_a_sliver_of_a_core_is_rounded_up_to_what_gets_warm() -> None:
    assert options(ResourceRequest(cores=0.001))["HostConfig"]["NanoCpus"] == 100_000_000
    assert options(ResourceRequest(cores=1.5))["HostConfig"]["NanoCpus"] == 1_500_000_000


def test_a_gpu_is_given_by_its_uuid_with_room_for_its_driver() -> None:
    host = options(ResourceRequest(gpus=1, memory_bytes=4 * GIB), gpus=["GPU-1"])["HostConfig"]
    assert host["DeviceRequests"][0]["DeviceIDs"] == ["GPU-1"]
    assert host["DeviceRequests"][0]["Count"] == 0
    assert host["PidsLimit"] == 512
    assert size_of(host, "/dev/shm") == str(GIB)
    assert {"Name": "nofile", "Soft": 4096, "Hard": 4096} in host["Ulimits"]


def test_another_runtime_is_named_only_when_it_is_asked_for() -> None:
    assert "Runtime" not in options()["HostConfig"]
    assert options(runtime="runsc")["HostConfig"]["Runtime"] == "runsc"


def test_an_engine_with_every_limit_keeps_every_promise() -> None:
    assert [promise.name for promise in promises(GOOD_ENGINE) if not promise.kept] == []


@pytest.mark.parametrize(
    ("field", "value", "broken"),
    [
        ("MemoryLimit", False, "memory limit"),
        ("SwapLimit", False, "no swap above it"),
        ("PidsLimit", False, "process limit"),
        ("CpuCfsQuota", False, "CPU quota"),
        ("CpuCfsPeriod", False, "CPU quota"),
        ("SecurityOptions", ["name=userns"], "system call filter"),
        ("SecurityOptions", None, "system call filter"),
        ("CgroupDriver", "none", "control groups"),
        ("OSType", "windows", "Linux containers"),
    ],
)
def test_an_engine_without_a_limit_breaks_that_promise(
    field: str, value: object, broken: str
) -> None:
    found = promises({**GOOD_ENGINE, field: value})
    assert [promise.name for promise in found if not promise.kept] == [broken]


def test_a_machine_without_swap_needs_no_limit_of_it() -> None:
    found = promises({**GOOD_ENGINE, "SwapLimit": False}, has_swap=False)
    assert all(promise.kept for promise in found)


def test_a_container_sees_one_folder_of_the_host_and_cannot_write_to_it() -> None:
    assert options()["HostConfig"].get("Mounts") is None
    (mount,) = options(inputs="/data/slots/1")["HostConfig"]["Mounts"]
    assert (mount["Source"], mount["Target"]) == ("/data/slots/1", "/in")
    assert mount["ReadOnly"] is True
    assert mount["BindOptions"] == {"Propagation": "rprivate"}
