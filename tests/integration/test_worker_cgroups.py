"""A container's counters in recorded files: what each kernel writes there, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.sandbox.cgroups import CgroupMeter
from worker.sandbox.metering import HostReading

ID = "4f0c" * 16
CPU_STAT = """\
usage_usec 1066432
user_usec 1000000
system_usec 66432
nr_periods 12
nr_throttled 3
throttled_usec 250000
"""
EVENTS = "low 0\nhigh 0\nmax 31\noom 2\noom_kill 2\noom_group_kill 0\n"
OOM_CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"


def machine(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """Lay out a /proc with these tables and a tree with these files; return the /proc."""
    proc = root / "proc"
    for name, text in {"7/cgroup": cgroup, "self/mountinfo": mounts}.items():
        (proc / name).parent.mkdir(parents=True, exist_ok=True)
        (proc / name).write_text(text)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return proc


def v2_machine(root: Path, **files: str) -> Path:
    group = f"system.slice/docker-{ID}.scope"
    return machine(
        root,
        f"0::/{group}\n",
        f"34 24 0:29 / {root}/cg rw shared:4 - cgroup2 cgroup2 rw\n",
        {f"cg/{group}/{name.replace('_', '.', 1)}": text for name, text in files.items()},
    )


def v1_machine(root: Path, **files: str) -> Path:
    group = f"docker/{ID}"
    return machine(
        root,
        f"4:memory:/{group}\n2:cpu,cpuacct:/{group}\n",
        f"33 31 0:30 / {root}/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        f"35 31 0:32 / {root}/memory rw - cgroup cgroup rw,memory\n",
        {
            f"{'cpu' if name.startswith('cpu') else 'memory'}/{group}/{name.replace('_', '.', 1)}": text
            for name, text in files.items()
        },
    )


def meter(proc: Path) -> CgroupMeter:
    found = CgroupMeter.of_process(7, ID, proc=proc)
    assert found is not None
    return found


def test_version_2_tells_cpu_time_peak_and_kills(tmp_path: Path) -> None:
    proc = v2_machine(tmp_path, cpu_stat=CPU_STAT, memory_peak="176160768\n", memory_events=EVENTS)
    found = meter(proc)
    assert found.read() == HostReading(pytest.approx(1.066432), 176160768, 2)
    found.close()
    assert found.read() is None


def test_version_2_of_an_older_kernel_has_no_peak(tmp_path: Path) -> None:
    proc = v2_machine(tmp_path, cpu_stat=CPU_STAT, memory_events=EVENTS)
    assert meter(proc).read() == HostReading(pytest.approx(1.066432), None, 2)


def test_version_1_tells_the_same_and_its_peak_starts_anew(tmp_path: Path) -> None:
    proc = v1_machine(
        tmp_path,
        cpuacct_usage="1066432000\n",
        memory_max_usage_in_bytes="176160768\n",
        memory_oom_control=OOM_CONTROL,
    )
    found = meter(proc)
    assert found.read() == HostReading(pytest.approx(1.066432), 176160768, 1)
    found.begin()
    peak = tmp_path / f"memory/docker/{ID}/memory.max_usage_in_bytes"
    assert peak.read_text().startswith("0\n")  # as the kernel wants it


def test_a_peak_that_cannot_be_reset_counts_from_the_containers_start(tmp_path: Path) -> None:
    proc = v2_machine(tmp_path, cpu_stat=CPU_STAT, memory_peak="5\n", memory_events=EVENTS)
    (tmp_path / f"cg/system.slice/docker-{ID}.scope/memory.peak").chmod(0o444)
    found = meter(proc)
    found.begin()
    reading = found.read()
    assert reading is not None and reading.cpu_s == pytest.approx(1.066432)


@pytest.mark.parametrize(
    "files", [{"memory_peak": "5\n"}, {"cpu_stat": "user_usec 1\n"}, {"cpu_stat": ""}]
)
def test_without_its_cpu_time_there_is_no_meter(tmp_path: Path, files: dict[str, str]) -> None:
    assert CgroupMeter.of_process(7, ID, proc=v2_machine(tmp_path, **files)) is None


def test_a_process_that_is_not_there_has_no_meter(tmp_path: Path) -> None:
    proc = v2_machine(tmp_path, cpu_stat=CPU_STAT)
    assert CgroupMeter.of_process(8, ID, proc=proc) is None
