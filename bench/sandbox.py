"""The sandbox beside its yardsticks: fork ahead, fresh containers, an empty pool, memory at rest.

Every yardstick runs in the same rounds as its subject, so that a noisy neighbour slows both; the
ratio counts.

    python -m bench.sandbox [--cells 40] [--containers 24] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from gridx.ids import new_worker_id
from gridx.resources import MIB
from worker.images import engine_client
from worker.runtime.frames import Events, Exited, Run
from worker.sandbox import docker as docker_sandbox
from worker.sandbox.base import DEFAULT_REQUEST, Sandbox
from worker.sandbox.docker import DockerEngine
from worker.sandbox.limits import WARM_BYTES, container_options
from worker.sandbox.pool import SandboxPool

from .memory import charged_bytes

CELL = Run(kind="cell", code="1+1", timeout_s=30.0)
SCRIPT = Run(kind="script", code="print(1+1)", timeout_s=30.0)
BARE_PYTHON = ["python3", "-I", "-c", "print(1+1)"]
BARE_IPYTHON = [
    *("python3", "-I", "-c"),
    "import sys; sys.path.append('/opt/gridx/site'); import IPython; print(1+1)",
]
AT_ONCE = 2  # more starts in parallel are slower on two cores
MOST_WARM = 8
COLD_ROUNDS = 8


class Row(NamedTuple):
    """One line of the table."""

    name: str
    values: list[float]  # seconds each, or containers a second, or MiB
    unit: str
    yardstick: str = ""


async def answer(sandbox: Sandbox, run: Run) -> None:
    """Run one call to its end."""
    await sandbox.send(run)
    while not isinstance(await sandbox.receive(), Exited):
        pass


async def first_output(sandbox: Sandbox) -> None:
    await sandbox.send(SCRIPT)
    while not isinstance(await sandbox.receive(), Events):
        pass


async def timed(work: Awaitable[None]) -> float:
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


# ---------------------------------------------------------------- fork ahead


def options_of_fork_in_job(*given: Any, inputs: str, **options: Any) -> dict[str, Any]:
    """Return the production options with the other supervisor, laid into the input folder."""
    body = container_options(*given, inputs=inputs, **options)
    shutil.copy(Path(__file__).with_name("fork_in_job.py"), Path(inputs) / "fork_in_job.py")
    return body | {"Cmd": ["python3", "-I", "-S", "/in/fork_in_job.py"]}


async def start_fork_in_job(engine: DockerEngine) -> Sandbox:
    names = vars(docker_sandbox)
    names["container_options"] = options_of_fork_in_job
    try:
        return await engine.start(DEFAULT_REQUEST)
    finally:
        names["container_options"] = container_options


async def fork_rows(engine: DockerEngine, cells: int) -> list[Row]:
    """Return the round trip of a trivial cell in each kind of sandbox, warm."""
    times: dict[str, list[float]] = {"forked ahead": [], "forked in the job": []}
    for _ in range(cells):
        for name, start in (
            ("forked ahead", lambda: engine.start(DEFAULT_REQUEST)),
            ("forked in the job", lambda: start_fork_in_job(engine)),
        ):
            sandbox = await start()
            times[name].append(await timed(answer(sandbox, CELL)))
            await sandbox.kill()
    return [
        Row("cell, forked ahead", times["forked ahead"], "ms", "cell, forked in the job"),
        Row("cell, forked in the job", times["forked in the job"], "ms"),
    ]


# ---------------------------------------------------------------- fresh containers


async def per_second(count: int, one: Callable[[], Awaitable[None]]) -> float:
    """Return how many a second go through, ``AT_ONCE`` at a time, without a pause."""
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await one()

    return count / await timed(_all(work() for _ in range(AT_ONCE)))


async def _all(works: Any) -> None:
    await asyncio.gather(*works)


def bare(api: Any, image: str) -> None:
    """Create, start, wait for and remove one container, as a plain program would."""
    host = api.create_host_config(network_mode="none")
    made = api.create_container(image, BARE_PYTHON, host_config=host)
    api.start(made["Id"])
    api.wait(made["Id"])
    api.remove_container(made["Id"], force=True)


async def fresh_rows(engine: DockerEngine, count: int) -> list[Row]:
    """Return how many fresh containers a second run a trivial script, one each."""
    image = engine.images[0].name
    pool = SandboxPool(engine, target=4, most=MOST_WARM, parallel=AT_ONCE)
    await pool.fill_first()
    docker = shutil.which("docker")
    assert docker, "the docker command line is needed for this comparison"
    argv = [docker, "run", "--rm", "--network=none", image, *BARE_PYTHON]

    async def ours() -> None:
        sandbox = await pool.take(DEFAULT_REQUEST)
        await answer(sandbox, SCRIPT)
        pool.discard(sandbox, is_idle=True)

    async def run_command() -> None:
        process = await asyncio.create_subprocess_exec(
            *argv, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 0

    async def bare_api() -> None:
        await asyncio.to_thread(in_one_thread)

    def in_one_thread() -> None:
        with closing(engine_client()) as api:
            bare(api, image)

    subjects = {
        "fresh containers, pool": ours,
        "fresh containers, docker run": run_command,
        "fresh containers, bare API": bare_api,
    }
    rates: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(3):
        for name, one in subjects.items():
            if one is ours:  # what was warm before is not sustained
                await per_second(MOST_WARM, ours)
            rates[name].append(await per_second(max(2, count // 3), one))
            await asyncio.sleep(1.0)  # what is being removed, and the refill
    await pool.close()
    ours_name, command_name, bare_name = subjects
    return [
        Row(ours_name, rates[ours_name], "/s", command_name),
        Row(command_name, rates[command_name], "/s"),
        Row(bare_name, rates[bare_name], "/s", command_name),
    ]


# ---------------------------------------------------------------- an empty pool


async def cold_rows(engine: DockerEngine, rounds: int) -> list[Row]:
    """Return the time from asking an empty pool to the first output, beside the bare API."""
    pool = SandboxPool(engine, target=0, parallel=AT_ONCE)
    times: dict[str, list[float]] = {"pool": [], "python": [], "ipython": []}

    async def ours() -> None:
        sandbox = await pool.take(DEFAULT_REQUEST)
        await first_output(sandbox)
        pool.discard(sandbox)

    def hardened(command: list[str]) -> float:
        with closing(engine_client()) as api:
            body = container_options(
                DEFAULT_REQUEST,
                image=engine.images[0].digest,
                uid=250_000,
                worker_id="bench",
                pool_id="bench",
            )
            begun = time.perf_counter()
            made = api.create_container_from_config(body | {"Cmd": command})
            output = api.attach(made["Id"], stdout=True, stderr=True, stream=True)
            api.start(made["Id"])
            assert next(iter(output)).strip() == b"2"
            took = time.perf_counter() - begun
            api.remove_container(made["Id"], force=True)
            return took

    for _ in range(rounds):
        times["pool"].append(await timed(ours()))
        times["python"].append(await asyncio.to_thread(hardened, BARE_PYTHON))
        times["ipython"].append(await asyncio.to_thread(hardened, BARE_IPYTHON))
        await asyncio.sleep(0.3)
    await pool.close()
    return [
        Row("first output, pool empty", times["pool"], "ms", "bare API, hardened, IPython"),
        Row("bare API, hardened, IPython", times["ipython"], "ms"),
        Row("bare API, hardened, Python", times["python"], "ms", "bare API, hardened, IPython"),
    ]


# ---------------------------------------------------------------- memory


def proportional_bytes(pid: int) -> int:
    """Return the memory of a process and its children, shared pages by their share (PSS)."""
    total = 0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        total += proportional_bytes(int(child))
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            total += int(line.split()[1]) * 1024
    return total


async def memory_rows(engine: DockerEngine, count: int = 4) -> list[Row]:
    """Return what idle warm containers take."""
    sandboxes = [await engine.start(DEFAULT_REQUEST) for _ in range(count)]
    with closing(engine_client()) as api:
        pids = [(box.id, api.inspect_container(box.id)["State"]["Pid"]) for box in sandboxes]
    charged = [charged_bytes(box, pid) / MIB for box, pid in pids]
    shares = [proportional_bytes(pid) / MIB for _, pid in pids]
    for sandbox in sandboxes:
        await sandbox.kill()
    return [
        Row("idle warm, charged", charged, "MiB", f"{WARM_BYTES // MIB} MiB are set aside"),
        Row("idle warm, PSS", shares, "MiB"),
    ]


# ---------------------------------------------------------------- the table


async def measure(cells: int, containers: int, cold_rounds: int) -> list[Row]:
    """Return every row, in order."""
    engine = DockerEngine(worker_id=new_worker_id())
    await engine.prepare()
    try:
        return [
            *await fork_rows(engine, cells),
            *await fresh_rows(engine, containers),
            *await cold_rows(engine, cold_rounds),
            *await memory_rows(engine),
        ]
    finally:
        await engine.close()


def main(argv: list[str] | None = None) -> None:
    """Run it and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=40)
    parser.add_argument("--containers", type=int, default=24)
    parser.add_argument("--cold", type=int, default=COLD_ROUNDS)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    rows = asyncio.run(measure(options.cells, options.containers, options.cold))
    medians = {row.name: statistics.median(row.values) for row in rows}
    print("sandbox (fresh containers: more is better)")
    print(f"{'':32} {'n':>4} {'min':>8} {'p50':>8} {'max':>8}  p50 / yardstick")
    figures = []
    for row in rows:
        scale = 1e3 if row.unit == "ms" else 1.0
        low, high = min(row.values) * scale, max(row.values) * scale
        middle = medians[row.name] * scale
        ratio = medians[row.name] / medians[row.yardstick] if row.yardstick in medians else None
        beside = row.yardstick if ratio is None else f"{ratio:.2f} x {row.yardstick}"
        print(
            f"{row.name:32} {len(row.values):4} {low:8.2f} {middle:8.2f} {high:8.2f}"
            f" {row.unit:3} {beside}".rstrip()
        )
        figures.append(
            {
                "name": row.name,
                "n": len(row.values),
                "unit": row.unit,
                "min": low,
                "p50": middle,
                "max": high,
                "ratio": ratio,
            }
        )
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
