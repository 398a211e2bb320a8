"""A sandbox with one of its protections taken away, to see which test notices.

    pytest -p tests.support.weakened --without CapDrop tests/acceptance/adversarial

runs the tests that say ``@pytest.mark.guards("CapDrop")``, in containers without it. The worker
has no switch for this: what it asks of the engine is changed on its way, and what runs inside is
covered by a changed copy.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import worker.sandbox.docker
from worker.sandbox import limits
from worker.sandbox.limits import container_options

RUNTIME: Final = Path(__file__).parents[2] / "worker" / "runtime"
RUNTIME_INSIDE: Final = "/opt/gridx/lib/gridx_runtime"

Options = dict[str, Any]


class Weakening(NamedTuple):
    """One protection, and the sandbox without it."""

    holds_off: str  # what would come through
    how: str = "removed"
    options: Callable[[Options], None] | None = None
    module: str = ""  # of the runtime
    appended: str = ""  # to that module
    note: str = ""


def _without(key: str) -> Callable[[Options], None]:
    def weaken(options: Options) -> None:
        (options if key in options else options["HostConfig"]).pop(key)

    return weaken


def _with(key: str, value: Any) -> Callable[[Options], None]:
    def weaken(options: Options) -> None:
        (options if key in options else options["HostConfig"])[key] = value

    return weaken


def _removed(key: str, holds_off: str, note: str = "") -> Weakening:
    return Weakening(holds_off, options=_without(key), note=note)


def _set(key: str, value: Any, holds_off: str, note: str = "") -> Weakening:
    return Weakening(holds_off, f"{value!r} instead", _with(key, value), note=note)


def _ulimit(name: str, holds_off: str) -> Weakening:
    def weaken(options: Options) -> None:
        host = options["HostConfig"]
        host["Ulimits"] = [limit for limit in host["Ulimits"] if limit["Name"] != name]

    return Weakening(holds_off, options=weaken)


def _mount_option(folder: str, name: str, instead: str | None, holds_off: str) -> Weakening:
    def weaken(options: Options) -> None:
        tmpfs = options["HostConfig"]["Tmpfs"]
        words = [
            instead if word.partition("=")[0] == name else word for word in tmpfs[folder].split(",")
        ]
        tmpfs[folder] = ",".join(word for word in words if word is not None)

    return Weakening(holds_off, "removed" if instead is None else f"{instead} instead", weaken)


def _bind(change: Callable[[dict[str, Any]], None]) -> Callable[[Options], None]:
    def weaken(options: Options) -> None:
        for mount in options["HostConfig"].get("Mounts", ()):
            change(mount)

    return weaken


def _environment(change: Callable[[list[str]], list[str]]) -> Callable[[Options], None]:
    def weaken(options: Options) -> None:
        options["Env"] = change(options["Env"])

    return weaken


def _one_uid(options: Options) -> None:
    options["User"] = "299999:299999"
    tmpfs = options["HostConfig"]["Tmpfs"]
    for folder, words in tmpfs.items():
        tmpfs[folder] = ",".join(
            f"{word.partition('=')[0]}=299999" if word.startswith(("uid=", "gid=")) else word
            for word in words.split(",")
        )


def _without_memory(options: Options) -> None:
    options["HostConfig"].pop("Memory")
    options["HostConfig"].pop("MemorySwap")  # the engine takes none without the other


def _unconfined(options: Options) -> None:
    options["HostConfig"]["SecurityOpt"] = [
        *options["HostConfig"].get("SecurityOpt", ()),
        "seccomp=unconfined",
    ]


def _networked(options: Options) -> None:
    options.pop("NetworkDisabled")
    options.pop("Hostname")  # not together with the machine's network
    options["HostConfig"]["NetworkMode"] = "host"


def _labelled(options: Options) -> None:
    options["Labels"] = {**options["Labels"], "gridx.token": "a secret"}


def _unlabelled(options: Options) -> None:
    options["Labels"] = {
        name: value for name, value in options["Labels"].items() if name != limits.WORKER_LABEL
    }


def _not_isolated(options: Options) -> None:
    options["Cmd"] = [word for word in options["Cmd"] if word != "-I"]


_FOLDERS: Final = ("/work", "/tmp", "/dev/shm")  # the container's
_DEFAULT: Final = "The engine's own default is the same, so the test is of the other value."

WEAKENINGS: Final[Mapping[str, Weakening]] = {
    "Cmd -I": Weakening(
        "modules from the working folder or the environment in PID 1", options=_not_isolated
    ),
    "User": _removed("User", "a job as the image's user, one and the same for every job"),
    "distinct uid": Weakening(
        "one job using up what the kernel counts by user: inotify, pipes, queues, signals",
        "one uid for all",
        _one_uid,
    ),
    "StdinOnce": _set("StdinOnce", False, "containers that outlive their worker"),
    "Tty": _set("Tty", True, "a terminal that changes bytes of the protocol", _DEFAULT),
    "NetworkDisabled": _removed(
        "NetworkDisabled",
        "a network, should the mode be another one",
        "NetworkMode alone holds; seen in what the engine has noted.",
    ),
    "NetworkMode": _set(
        "NetworkMode",
        "host",
        "the lender's network",
        "NetworkDisabled alone holds; seen in what the engine has noted.",
    ),
    "network": Weakening("the lender's network", "both of the above", _networked),
    "Hostname": _removed("Hostname", "the container's id, which names it on the host"),
    "Healthcheck": _removed(
        "Healthcheck",
        "a command of the image that runs beside the job",
        "Our images have none; seen in what the engine has noted.",
    ),
    "Env": Weakening(
        "a secret in the job's environment",
        "a variable more",
        _environment(lambda env: [*env, "GRIDX_WORKER_TOKEN=secret"]),
    ),
    "Env threads": Weakening(
        "as many threads as the machine has cores",
        options=_environment(lambda env: [word for word in env if "_NUM_THREADS" not in word]),
    ),
    "Labels": Weakening("containers that no sweep finds", "the worker's removed", _unlabelled),
    "Labels without secrets": Weakening("a secret in the labels", "a label more", _labelled),
    "ReadonlyRootfs": _removed("ReadonlyRootfs", "writing to the image's files, and to the disk"),
    "CapDrop": _removed("CapDrop", "capabilities for whatever becomes root"),
    "Privileged": _set("Privileged", True, "the machine itself", _DEFAULT),
    "SecurityOpt": _removed("SecurityOpt", "setuid programs that give other rights"),
    "seccomp": Weakening(
        "the rare kernel calls of the engine's own list", "unconfined instead", _unconfined
    ),
    "PidsLimit": _removed("PidsLimit", "fork and thread bombs"),
    "Memory": Weakening("memory bombs", options=_without_memory),
    "MemorySwap": _removed("MemorySwap", "as much again in the machine's swap"),
    "NanoCpus": _removed("NanoCpus", "all cores of the machine"),
    "OomScoreAdj": _removed("OomScoreAdj", "the lender's own programs killed before the job"),
    "IpcMode": _set("IpcMode", "host", "shared memory and queues of the machine", _DEFAULT),
    "CgroupnsMode": _set("CgroupnsMode", "host", "the names of the machine's control groups"),
    "Init": _set("Init", True, "a PID 1 that a job can end", _DEFAULT),
    "LogConfig": _removed("LogConfig", "the job's output on the lender's disk"),
    "RestartPolicy": _set(
        "RestartPolicy",
        {"Name": "always", "MaximumRetryCount": 0},
        "a killed container that comes back",
        _DEFAULT,
    ),
    "AutoRemove": _set(
        "AutoRemove", True, "an end that nobody can look at (out of memory or not)", _DEFAULT
    ),
    "Ulimits nofile": _ulimit("nofile", "a million open files"),
    "Ulimits fsize": _ulimit("fsize", "one file that takes it all"),
    "Ulimits core": _ulimit("core", "core dumps with the user's data"),
    "Ulimits msgqueue": _ulimit("msgqueue", "kernel memory outside the limit"),
    **{
        f"Tmpfs {folder} {name}": _mount_option(folder, name, instead, holds_off)
        for folder in _FOLDERS
        for name, instead, holds_off in (
            ("size", None, "half of the machine's memory as a disk"),
            ("nr_inodes", None, "hundreds of thousands of files"),
            ("noexec", "exec", "programs of the job's own on disk (a speed bump)"),
            ("nosuid", "suid", "setuid programs of the job's own"),
            ("nodev", "dev", "device nodes of the job's own"),
        )
    },
    "Tmpfs /work uid": _mount_option("/work", "uid", "uid=0", "somebody else's /work"),
    "Tmpfs /work gid": _mount_option("/work", "gid", "gid=0", "somebody else's /work"),
    "Tmpfs /work mode": _mount_option(
        "/work", "mode", "mode=0777", "a /work open to others"
    )._replace(
        note="Older runc lets the mode of the image's own folder win, which is 0700 too; seen in"
        " what the engine has noted."
    ),
    "Mounts ReadOnly": Weakening(
        "changes to inputs, which other jobs of the worker read too",
        "False instead",
        _bind(lambda mount: mount.update(ReadOnly=False)),
    ),
    "Mounts Source": Weakening(
        "inputs of other jobs",
        "the folder above instead",
        _bind(lambda mount: mount.update(Source=str(Path(mount["Source"]).parent))),
    ),
    "Mounts BindOptions": Weakening(
        "later mounts of the machine in /in",
        options=_bind(lambda mount: mount.pop("BindOptions")),
        note="The engine's own default is the same; seen in what the engine has noted.",
    ),
    "runtime: system call filter": Weakening(
        "io_uring, vsock, netlink and what else older engines let through",
        module="syscalls.py",
        appended="def install():\n    pass\n",
    ),
    "runtime: PID 1 not dumpable": Weakening(
        "frames written by the job into PID 1's own descriptors",
        module="syscalls.py",
        appended="def set_dumpable(dumpable):\n    pass\n",
    ),
    "runtime: other descriptors closed": Weakening(
        "frames written by the job into descriptors that it has inherited",
        module="child.py",
        appended=(
            "_all_of_it = _alone_with\n"
            "def _alone_with(pipes):\n"
            "    own, os.closerange = os.closerange, lambda *_: None\n"
            "    try:\n        return _all_of_it(pipes)\n"
            "    finally:\n        os.closerange = own\n"
        ),
    ),
    "runtime: deadline": Weakening(
        "a job without an end",
        module="supervisor.py",
        appended="Supervisor._check_clock = lambda self: None\n",
    ),
    "runtime: kill of strays": Weakening(
        "processes that outlive their job",
        module="processes.py",
        appended="def kill_strays(*, alone):\n    return []\n",
    ),
}

# Keys of the options that hold nothing off: a job would not run, or not as well, without them.
FUNCTIONAL: Final[Mapping[str, str]] = {
    "Image": "what is started, by id",
    "Cmd": "the supervisor; its flag -I has a row",
    "OpenStdin": "the way in of the protocol",
    "AttachStdin": "same",
    "AttachStdout": "the way out",
    "AttachStderr": "diagnostics of PID 1",
    "WorkingDir": "where a job begins",
    "Env HOME": "no passwd entry has the uid",
    "Env USER": "same",
    "Env LOGNAME": "same",
    "Env IPYTHONDIR": "IPython writes to it",
    "Env PYTHONDONTWRITEBYTECODE": "the image is read-only",
    "Tmpfs /work rw": "a job writes to it",
    "Tmpfs /tmp rw": "same",
    "Tmpfs /tmp mode": "same",
    "Tmpfs /dev/shm rw": "same",
    "Tmpfs /dev/shm uid": "same",
    "Tmpfs /dev/shm gid": "same",
    "Tmpfs /dev/shm mode": "same",
    "Mounts Type": "how inputs come in",
    "Mounts Target": "same",
}


def keys_of(options: Mapping[str, Any]) -> set[str]:
    """Return the options of a container, one by one, under the names of the two tables."""
    host = options["HostConfig"]
    parts = {"Ulimits", "Tmpfs", "Mounts"}
    keys = (set(options) | set(host)) - {"HostConfig", "Env", *parts}
    keys |= {f"Ulimits {limit['Name']}" for limit in host["Ulimits"]}
    keys |= {
        f"Tmpfs {folder} {word.partition('=')[0]}"
        for folder, words in host["Tmpfs"].items()
        for word in words.split(",")
    }
    keys |= {f"Mounts {name}" for mount in host.get("Mounts", ()) for name in mount}
    names = {entry.partition("=")[0] for entry in options["Env"]}
    keys |= {"Env threads" if "_NUM_THREADS" in name else f"Env {name}" for name in names}
    return keys


def weakened_options(flag: str, runtime: Path) -> Callable[..., Options]:
    """Return ``container_options`` without ``flag``.

    Args:
        flag: a key of ``WEAKENINGS``.
        runtime: an empty folder that the engine sees under the same path.
    """
    weakening = WEAKENINGS[flag]
    if weakening.module:
        shutil.copytree(
            RUNTIME, runtime, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        with (runtime / weakening.module).open("a") as file:
            file.write("\n\n" + weakening.appended)

    def weakened(*args: Any, **more: Any) -> Options:
        options = container_options(*args, **more)
        if weakening.options is not None:
            weakening.options(options)
        if weakening.module:
            options["HostConfig"].setdefault("Mounts", []).append(
                {
                    "Type": "bind",
                    "Source": str(runtime),
                    "Target": RUNTIME_INSIDE,
                    "ReadOnly": True,
                }
            )
        return options

    return weakened


# ---------------------------------------------------------------- the plugin


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("weakened")
    group.addoption("--guards", action="store_true", help="run the tests that guard a flag")
    group.addoption("--without", metavar="FLAG", help="run those that guard FLAG, without it")


_changed = pytest.StashKey[tuple[pytest.MonkeyPatch, str]]()


def pytest_configure(config: pytest.Config) -> None:
    flag = config.getoption("--without")
    if flag is None:
        return
    if flag not in WEAKENINGS:
        raise pytest.UsageError(f"{flag!r} is none of {', '.join(WEAKENINGS)}.")
    folder = tempfile.mkdtemp(prefix="gridx-weakened-")
    Path(folder).chmod(0o755)  # the container's user reads it
    patch = pytest.MonkeyPatch()
    patch.setattr(worker.sandbox.docker, "container_options", weakened_options(flag, Path(folder)))
    config.stash[_changed] = (patch, folder)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _changed in config.stash:
        patch, folder = config.stash[_changed]
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    flag = config.getoption("--without")
    if flag is None and not config.getoption("--guards"):
        return

    def guards(item: pytest.Item) -> bool:
        flags = {each for mark in item.iter_markers("guards") for each in mark.args}
        return bool(flags) if flag is None else flag in flags

    config.hook.pytest_deselected(items=[item for item in items if not guards(item)])
    items[:] = [item for item in items if guards(item)]
