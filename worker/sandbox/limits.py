"""A resource request as the engine's options, every flag with its reason.

Nothing here is measured or asked: a request goes in, the body of the Engine API's
``POST /containers/create`` comes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gridx.disk import check_disk, shared_bytes, tmp_bytes, work_bytes
from gridx.errors import InvalidRequest, SandboxError
from gridx.resources import MIB, ResourceRequest

from .base import Promise

GVISOR: Final = "runsc"  # the runtime whose containers a job can end, and speak for, from inside

WORKER_LABEL: Final = "gridx.worker"  # the worker's id: the sweep at start finds its leftovers
POOL_LABEL: Final = "gridx.pool"  # one daemon run of that worker
UIDS_LABEL: Final = "gridx.uids"  # the first user id of the range that this run has for itself

PIDS: Final = 128
PIDS_WITH_GPU: Final = 512  # CUDA starts threads for itself
LEAST_CORES: Final = 0.1  # with less, the supervisor itself is not warm in time
OPEN_FILES: Final = 1024
OPEN_FILES_WITH_GPU: Final = 4096
FILE_BYTES: Final = 256 * MIB
FILES: Final = 16384
OOM_SCORE: Final = 500

WARM_BYTES: Final = 35 * MIB  # of the host's memory, for one idle warm container with numpy

INPUTS_DIR: Final = "/in"  # where a job finds its blobs; the image has the folder

COMMAND: Final = ["python3", "-I", "-S", "/opt/gridx/lib/gridx_runtime/supervisor.py"]


def container_options(
    request: ResourceRequest,
    *,
    image: str,
    uid: int,
    worker_id: str,
    pool_id: str,
    inputs: str | None = None,
    gpus: Sequence[str] = (),
    runtime: str | None = None,
) -> dict[str, Any]:
    """Return the body that creates one hardened, single-use container.

    Args:
        request: the size; memory is a hard limit that includes /work, /tmp and /dev/shm.
        image: id or tag.
        uid: a user id that no other live container has: the kernel counts inotify instances,
            pipe buffers, message queues and pending signals for each user, across containers.
        worker_id: label of the sweep at start.
        pool_id: label of this run of the daemon.
        inputs: folder of the host that this container alone sees, and cannot write to.
        gpus: UUIDs of the devices that this container gets, and no other does.
        runtime: another OCI runtime of the engine ("runsc"); its default when None.

    Raises:
        SandboxError: the disk that is asked for does not fit into the memory.
    """
    try:
        check_disk(request.memory_bytes, request.disk_bytes, gpus=len(gpus))
    except InvalidRequest as error:
        raise SandboxError(str(error), hint=error.hint) from error
    threads = str(max(1, math.ceil(request.cores)))
    environment = {
        # No passwd entry has this uid, so what would be looked up there is said here. Nothing
        # secret: a job can read its own environment.
        "HOME": "/tmp",  # noqa: S108  # the container's own
        "USER": "job",
        "LOGNAME": "job",
        "IPYTHONDIR": "/tmp/.ipython",  # noqa: S108  # same
        "PYTHONDONTWRITEBYTECODE": "1",  # the root is read-only
        # Without these, numerical libraries start as many threads as the host has cores.
        "OPENBLAS_NUM_THREADS": threads,
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
    }
    return {
        "Image": image,
        "Cmd": COMMAND,
        "User": f"{uid}:{uid}",
        # StdinOnce: when the worker dies its end of stdin closes, PID 1 reads the end and exits.
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "Tty": False,  # a terminal would merge the streams and translate bytes
        "NetworkDisabled": True,
        "WorkingDir": "/work",
        "Hostname": "job",  # the default is the container's id, which names it on the host
        "Healthcheck": {"Test": ["NONE"]},  # an image's own check would run beside the job
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "Labels": {WORKER_LABEL: worker_id, POOL_LABEL: pool_id},
        "HostConfig": _host_config(request, uid=uid, inputs=inputs, gpus=gpus, runtime=runtime),
    }


def _host_config(
    request: ResourceRequest,
    *,
    uid: int,
    inputs: str | None,
    gpus: Sequence[str],
    runtime: str | None,
) -> dict[str, Any]:
    memory = request.memory_bytes
    work = work_bytes(memory, request.disk_bytes)
    shared = shared_bytes(memory, gpus=len(gpus))
    tmpfs = f"rw,noexec,nosuid,nodev,nr_inodes={FILES}"
    host: dict[str, Any] = {
        "NetworkMode": "none",  # only lo: nothing to scan, nothing to leak to
        "ReadonlyRootfs": True,  # with the tmpfs below it is the disk limit
        "CapDrop": ["ALL"],
        "Privileged": False,
        # The engine's seccomp profile stays on; the child stacks its own filter on it.
        "SecurityOpt": ["no-new-privileges:true"],  # setuid programs stay what they were
        "PidsLimit": PIDS_WITH_GPU if gpus else PIDS,  # fork and thread bombs end here
        "Memory": memory,
        "MemorySwap": memory,  # equal: no swap, so the limit is the limit
        "NanoCpus": int(max(request.cores, LEAST_CORES) * 1e9),
        "OomScoreAdj": OOM_SCORE,  # under pressure jobs go first; a job can change its own
        # "none" would take /dev/shm away, and with it multiprocessing's locks.
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "Init": False,  # the supervisor is PID 1: inside, no signal reaches it
        "LogConfig": {"Type": "none", "Config": {}},  # output is the job's, not the lender's disk's
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,  # would race with reading how it ended
        "Ulimits": [
            _ulimit("nofile", OPEN_FILES_WITH_GPU if gpus else OPEN_FILES),
            _ulimit("fsize", max(FILE_BYTES, request.disk_bytes or 0)),
            _ulimit("core", 0),  # a core dump would hold the user's data
            _ulimit("msgqueue", 0),  # POSIX queues are kernel memory outside the limit
        ],
        # nr_inodes: without it 100,000 empty files cost kernel memory that nobody counts. uid
        # and gid, because older runc lets the mode of the folder below win over ``mode=``.
        # /dev/shm is one of them because ``ShmSize`` bounds its bytes and not its files.
        "Tmpfs": {
            "/tmp": f"{tmpfs},size={tmp_bytes(memory)},mode=1777",  # noqa: S108  # same
            "/dev/shm": f"{tmpfs},size={shared},uid={uid},gid={uid},mode=1777",  # noqa: S108
            "/work": f"{tmpfs},size={work},uid={uid},gid={uid},mode=0700",
        },
    }
    if gpus:
        # By UUID: an index, or "all", would share a device between two jobs.
        host["DeviceRequests"] = [
            {
                "Driver": "",
                "Count": 0,
                "DeviceIDs": list(gpus),
                "Capabilities": [["gpu", "compute", "utility"]],
                "Options": {},
            }
        ]
    if inputs is not None:
        host["Mounts"] = [
            {
                # Not "Binds": there a missing folder would be made, as root's, instead of said.
                "Type": "bind",
                "Source": inputs,
                "Target": INPUTS_DIR,
                "ReadOnly": True,
                "BindOptions": {"Propagation": "rprivate"},  # later mounts of the host stay out
            }
        ]
    if runtime is not None:
        host["Runtime"] = runtime
    return host


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}


def promises(info: Mapping[str, Any], *, has_swap: bool = True) -> list[Promise]:
    """Return what ``docker info`` says about each limit that jobs are promised.

    An engine without a limit only warns when it is asked for one, so it is asked before.

    Args:
        info: the engine's answer.
        has_swap: whether its machine has any; without, there is nothing to limit.
    """
    security = " ".join(str(option) for option in info.get("SecurityOptions") or ())
    return [
        Promise(
            name="Linux containers",
            kept=info.get("OSType") == "linux",
            detail=_word(info, "OSType"),
        ),
        Promise(name="memory limit", kept=bool(info.get("MemoryLimit"))),
        Promise(name="no swap above it", kept=bool(info.get("SwapLimit")) or not has_swap),
        Promise(name="process limit", kept=bool(info.get("PidsLimit"))),
        Promise(name="CPU quota", kept=bool(info.get("CpuCfsQuota") and info.get("CpuCfsPeriod"))),
        Promise(name="system call filter", kept="name=seccomp" in security, detail=security),
        Promise(
            name="control groups",
            kept=info.get("CgroupDriver") not in (None, "", "none"),
            detail=f"v{_word(info, 'CgroupVersion')} {_word(info, 'CgroupDriver')}",
        ),
    ]


def _word(info: Mapping[str, Any], key: str) -> str:
    return str(info.get(key) or "?")
