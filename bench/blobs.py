"""A large array there and back: bytes sent by run, and the pace each way beside a copy in memory.

Everything is on: real sockets, a durable ledger and durable blobs, the hardened Docker sandbox.
``there`` is from the call until the job is accepted: names, digests, packing, HTTP, and the
coordinator's disk. ``in the sandbox`` is until the job's end, ``home`` is the download.

    python -m bench.blobs [--megabytes 400] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gridx.blocking import BlockingClient
from gridx.codec.results import apply_result
from gridx.resources import GIB
from gridx.schemas import CellSpec
from gridx.ship.capture import capture
from tests.support.programs import grid

MB = 1_000_000


class Run(NamedTuple):
    """One run of a cell: what travelled and how long each part took."""

    name: str
    sent_bytes: int
    there_s: float
    sandbox_s: float
    home_bytes: int
    home_s: float


def memcpy_mb_per_s(array: np.ndarray[Any, Any]) -> float:
    """Return how fast this machine copies ``array`` now, in MB/s."""
    target = np.empty_like(array)
    target[:] = array  # the pages are there from now on
    begun = time.perf_counter()
    target[:] = array
    return float(array.nbytes / (time.perf_counter() - begun) / MB)


def run_cell(
    client: BlockingClient, name: str, code: str, namespace: dict[str, Any], memory_bytes: int
) -> Run:
    """Run ``code`` as ``%%gridx`` does, and bind its results."""
    begun_s = time.perf_counter()
    sent = capture(code, namespace, with_blobs=True)
    cell = CellSpec(
        python=sent.python,
        expected=tuple(sorted(sent.expected)),
        inputs=tuple(sorted(sent.inputs)),
    )
    job = client.submit(
        code,
        cell=cell,
        inputs=sent.payload,
        blobs=sent.blobs,
        memory_bytes=memory_bytes,
        timeout_s=600,
    )
    accepted_s = time.perf_counter()
    end = job.wait()
    ended_s = time.perf_counter()
    assert end.view.status == "completed", end.view
    result: bytes | bytearray = end.result or b""
    if end.result_blobs:
        result = client.download(job.id, end.result_blobs)
    home_s = time.perf_counter() - ended_s
    apply_result(result, namespace, expected=sent.expected, cell_source=code)
    return Run(
        name=name,
        sent_bytes=job.sent_bytes,
        there_s=accepted_s - begun_s,
        sandbox_s=ended_s - accepted_s,
        home_bytes=len(result),
        home_s=home_s,
    )


def measure(megabytes: int) -> tuple[float, list[Run]]:
    """Return the pace of a copy in memory, and every run."""
    size = megabytes * MB // 8
    namespace: dict[str, Any] = {"np": np, "a": np.random.default_rng(1).random(size)}
    memory_bytes = 3 * size * 8 + GIB
    runs = []
    with (
        tempfile.TemporaryDirectory() as folder,
        grid(Path(folder)) as (coordinator, _),
        BlockingClient(url=coordinator.http_url, user="bench") as client,
    ):
        copy = memcpy_mb_per_s(namespace["a"])
        total = "total = float(a.sum())"
        runs.append(run_cell(client, "first run", total, namespace, memory_bytes))
        runs.append(run_cell(client, "second run", total, namespace, memory_bytes))
        namespace["a"][size // 2] += 1
        runs.append(run_cell(client, "one element edited", total, namespace, memory_bytes))
        assert abs(namespace["total"] - float(namespace["a"].sum())) < 1e-3
        runs.append(run_cell(client, "array home", "b = a + 1", namespace, memory_bytes))
        assert np.array_equal(namespace["b"], namespace["a"] + 1)
    return copy, runs


def main(argv: list[str] | None = None) -> None:
    """Run it and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args(argv)
    copy, runs = measure(options.megabytes)
    print(f"{options.megabytes} MB of float64; a copy in memory runs at {copy:,.0f} MB/s")
    print(f"{'':20} {'sent':>12} {'of it':>8} {'there':>9} {'sandbox':>9} {'home':>9}")
    whole = options.megabytes * MB
    for run in runs:
        there = f"{run.sent_bytes / run.there_s / MB:,.0f} MB/s" if run.sent_bytes > MB else ""
        home = f"{run.home_bytes / run.home_s / MB:,.0f} MB/s" if run.home_bytes > MB else ""
        print(
            f"{run.name:20} {run.sent_bytes:12,} {run.sent_bytes / whole:8.2%} {there:>9}"
            f" {run.sandbox_s:7.2f} s {home:>9}"
        )
    if options.json:
        figures = {"copy_mb_per_s": copy, "runs": [run._asdict() for run in runs]}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
