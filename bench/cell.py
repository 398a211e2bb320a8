"""Trivial cell, Enter to result: Grid-X beside the local Jupyter kernel and ``docker run``.

Everything is on: real sockets, durable ledger, hardened Docker sandbox, a fresh container a
cell. The rounds are interleaved, so that a noisy neighbour slows all of them alike; the ratio
counts. ``%%gridx in a kernel`` contains a whole round trip of the local kernel besides.

    python -m bench.cell [--cells 60] [--pause 0.5] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gridx.blocking import BlockingClient
from gridx.codec.results import apply_result
from gridx.schemas import CellSpec
from gridx.ship.capture import capture
from gridx.updates import Finished
from tests.support.kernels import Kernel
from tests.support.programs import grid

CELL = "1+1"


def percentile(values: list[float], q: float) -> float:
    """Return the ``q``-quantile (0..1) of ``values``, nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))]


def client_cell(client: BlockingClient) -> Callable[[], None]:
    """What ``%%gridx`` does in the kernel's process: capture, submit, read all, apply."""
    namespace: dict[str, Any] = {"x": 1}

    def run() -> None:
        sent = capture(CELL, namespace)
        cell = CellSpec(
            python=sent.python,
            expected=tuple(sorted(sent.expected)),
            inputs=tuple(sorted(sent.inputs)),
        )
        job = client.submit(CELL, cell=cell, inputs=sent.payload)
        for update in job.updates():
            if isinstance(update, Finished):
                assert update.view.status == "completed", update
                if update.result is not None:
                    apply_result(update.result, namespace, expected=sent.expected, cell_source=CELL)

    return run


def kernel_cell(kernel: Kernel, code: str) -> Callable[[], None]:
    def run() -> None:
        assert kernel.run(code).reply["status"] == "ok"

    return run


def docker_run(image: str) -> Callable[[], None]:
    docker = shutil.which("docker")
    assert docker, "the docker command line is needed for this comparison"
    argv = [docker, "run", "--rm", "--network=none", image, "/usr/bin/python3", "-c", "print(1+1)"]

    def run() -> None:
        subprocess.run(argv, check=True, capture_output=True)

    return run


def measure(cells: int, pause_s: float) -> dict[str, Any]:
    """Return seconds per call by subject."""
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, grid(Path(folder)) as (coordinator, _):
        image = coordinator.get("/workers")["workers"][0]["capability"]["images"][0]["name"]
        client = BlockingClient(url=coordinator.http_url, user="bench")
        with Kernel(coordinator.http_url, "bench") as kernel:
            subjects = {
                "local kernel": kernel_cell(kernel, CELL),
                "Grid-X": client_cell(client),
                "%%gridx in a kernel": kernel_cell(kernel, f"%%gridx --quiet\n{CELL}"),
                "docker run": docker_run(image),
            }
            for subject in subjects.values():
                for _ in range(3):
                    subject()
                    time.sleep(pause_s)
            for number in range(cells):
                for name, subject in subjects.items():
                    if name == "docker run" and number % 4:
                        continue
                    time.sleep(pause_s)
                    begun = time.perf_counter()
                    subject()
                    times.setdefault(name, []).append(time.perf_counter() - begun)
        client.close()
    return times


def main(argv: list[str] | None = None) -> None:
    """Run it and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", type=int, default=60)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between cells")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    times = measure(options.cells, options.pause)
    base = statistics.median(times["local kernel"])
    print(f"trivial cell, Enter to result, one every {options.pause} s, ms")
    print(f"{'':24} {'n':>4} {'min':>8} {'p50':>8} {'p99':>8} {'p50 / kernel':>13}")
    rows = []
    for name, values in times.items():
        row = {
            "name": name,
            "n": len(values),
            "min_ms": min(values) * 1e3,
            "p50_ms": statistics.median(values) * 1e3,
            "p99_ms": percentile(values, 0.99) * 1e3,
            "ratio": statistics.median(values) / base,
        }
        rows.append(row)
        print(
            f"{name:24} {row['n']:4} {row['min_ms']:8.2f} {row['p50_ms']:8.2f}"
            f" {row['p99_ms']:8.2f} {row['ratio']:13.2f}"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
