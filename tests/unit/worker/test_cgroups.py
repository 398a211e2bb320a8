"""Where a container's counters lie: recorded tables of kernels with each layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.sandbox.cgroups import find_folders

ID = "4f0c" * 16

V1_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:11 - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
"""
HYBRID_MOUNTS = (
    V1_MOUNTS + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"
)
V2_MOUNTS = (
    "34 24 0:29 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4"
    " - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
)
# A worker in a container of its own that has the machine's tree below its own root.
V2_NESTED_MOUNTS = (
    "934 925 0:29 /system.slice /host/cg\\040roup ro,relatime - cgroup2 cgroup rw,nsdelegate\n"
)


def v1_groups(group: str) -> str:
    return (
        f"9:name=systemd:{group}\n8:pids:{group}\n4:memory:{group}\n3:cpuset:{group}\n"
        f"2:cpu,cpuacct:{group}\n0::/system.slice/containerd.service\n"
    )


@pytest.mark.parametrize(
    ("cgroup", "mounts", "cpu", "memory", "is_v2"),
    [
        pytest.param(
            v1_groups(f"/docker/{ID}"),
            V1_MOUNTS,
            f"/sys/fs/cgroup/cpu,cpuacct/docker/{ID}",
            f"/sys/fs/cgroup/memory/docker/{ID}",
            False,
            id="v1, cgroupfs",
        ),
        pytest.param(
            v1_groups(f"/system.slice/docker-{ID}.scope"),
            V1_MOUNTS,
            f"/sys/fs/cgroup/cpu,cpuacct/system.slice/docker-{ID}.scope",
            f"/sys/fs/cgroup/memory/system.slice/docker-{ID}.scope",
            False,
            id="v1, systemd",
        ),
        pytest.param(
            v1_groups(f"/docker/{ID}") + f"0::/docker/{ID}\n",
            HYBRID_MOUNTS,
            f"/sys/fs/cgroup/cpu,cpuacct/docker/{ID}",
            f"/sys/fs/cgroup/memory/docker/{ID}",
            False,
            id="hybrid: the controllers are those of v1",
        ),
        pytest.param(
            f"0::/system.slice/docker-{ID}.scope\n",
            V2_MOUNTS,
            f"/sys/fs/cgroup/system.slice/docker-{ID}.scope",
            f"/sys/fs/cgroup/system.slice/docker-{ID}.scope",
            True,
            id="v2, systemd",
        ),
        pytest.param(
            f"0::/docker/{ID}\n",
            V2_MOUNTS,
            f"/sys/fs/cgroup/docker/{ID}",
            f"/sys/fs/cgroup/docker/{ID}",
            True,
            id="v2, cgroupfs",
        ),
        pytest.param(
            f"0::/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope\n",
            V2_MOUNTS,
            f"/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
            f"/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope",
            True,
            id="v2, rootless",
        ),
        pytest.param(
            f"0::/system.slice/docker-{ID}.scope\n",
            V2_NESTED_MOUNTS,
            f"/host/cg roup/docker-{ID}.scope",
            f"/host/cg roup/docker-{ID}.scope",
            True,
            id="v2, a part of the tree mounted elsewhere",
        ),
    ],
)
def test_the_counters_are_found_in_each_layout(
    cgroup: str, mounts: str, cpu: str, memory: str, is_v2: bool
) -> None:
    assert find_folders(cgroup, mounts, container=ID) == (Path(cpu), Path(memory), is_v2)


@pytest.mark.parametrize(
    ("cgroup", "mounts"),
    [
        pytest.param(v1_groups("/user.slice"), V1_MOUNTS, id="another process, v1"),
        pytest.param("0::/init.scope\n", V2_MOUNTS, id="another process, v2"),
        pytest.param(f"0::/../docker-{ID}.scope\n", V2_MOUNTS, id="outside of the namespace"),
        pytest.param(f"0::/docker/{ID}\n", V2_NESTED_MOUNTS, id="not below the mount"),
        pytest.param(f"0::/docker/{ID}\n", "", id="nothing is mounted"),
        pytest.param("", V2_MOUNTS, id="no table"),
    ],
)
def test_a_group_that_is_not_the_containers_or_cannot_be_seen_is_not_read(
    cgroup: str, mounts: str
) -> None:
    assert find_folders(cgroup, mounts, container=ID)[0] is None
