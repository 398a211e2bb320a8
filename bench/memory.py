"""Memory of the parts at rest: coordinator with 10,000 stored jobs, worker, warm containers.

python -m bench.memory [--jobs 10000]
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

import psutil

from gridx.client import Client
from gridx.ids import new_job_id
from gridx.resources import MIB
from gridx.schemas import JobRequest, Limits
from tests.support.programs import Coordinator, Worker, containers_of, wait_for
from worker.images import engine_client

BARS_MIB = {"coordinator, 10,000 stored jobs": 150, "worker daemon": 100, "idle warm container": 35}


async def store_jobs(url: str, count: int) -> None:
    """Submit and cancel ``count`` jobs, so that they are stored and cost nothing."""
    limits = Limits(timeout_s=0.001)
    async with Client(url=url, user="hoarder") as client:
        gate = asyncio.Semaphore(64)

        async def one() -> None:
            async with gate:
                job = await client.submit(
                    JobRequest(code="print(1)", limits=limits, job_id=new_job_id())
                )
                await job.cancel()
                await job.wait()

        await asyncio.gather(*(one() for _ in range(count)))


def charged_bytes(container_id: str, pid: int) -> int:
    """Return what the container's memory cgroup is charged, version 1 or 2."""
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return int(Path(f"/sys/fs/cgroup/memory{path}/memory.usage_in_bytes").read_text())
        if controllers == "" and (file := Path(f"/sys/fs/cgroup{path}/memory.current")).exists():
            return int(file.read_text())
    raise LookupError(f"no memory cgroup for {container_id}")


def warm_sandboxes(coordinator: Coordinator) -> int:
    """Return how many warm containers the one worker says it has."""
    load = coordinator.get("/workers")["workers"][0]["load"]
    return int(load["warm_sandboxes"]) if load else 0


def main(argv: list[str] | None = None) -> None:
    """Run it and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    options = parser.parse_args(argv)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        with Coordinator(Path(folder) / "coordinator") as coordinator:
            asyncio.run(store_jobs(coordinator.http_url, options.jobs))
            figures[f"coordinator, {options.jobs:,} stored jobs"] = (
                psutil.Process(coordinator.process.pid).memory_info().rss / MIB
            )
            with Worker(coordinator, Path(folder) / "worker", "--warm", "2") as worker:
                coordinator.wait_job(coordinator.submit("user", "print(1)"))
                wait_for(lambda: warm_sandboxes(coordinator) == 2)
                figures["worker daemon"] = (
                    psutil.Process(worker.process.pid).memory_info().rss / MIB
                )
                api = engine_client()
                charged = [
                    charged_bytes(box, api.inspect_container(box)["State"]["Pid"])
                    for box in containers_of(worker.worker_id, running=True)
                ]
                figures["idle warm container"] = sum(charged) / len(charged) / MIB
                api.close()
    print(f"{'memory at rest':36} {'MiB':>8} {'bar':>6}")
    for name, value in figures.items():
        print(f"{name:36} {value:8.1f} {BARS_MIB.get(name, 0) or '-':>6}")


if __name__ == "__main__":
    main()
