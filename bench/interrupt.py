"""Stop button to container gone, and to hold closed. The bar: two seconds.

python -m bench.interrupt [--rounds 5]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.support.kernels import Kernel
from tests.support.programs import containers_of, grid, wait_for

BAR_S = 2.0
CELL = "%%gridx\nprint('begun', flush=True)\nwhile True:\n    pass"


def measure(rounds: int) -> list[tuple[float, float]]:
    """Return, for each round, seconds from the interrupt to container gone and hold closed."""
    figures = []
    with tempfile.TemporaryDirectory() as folder, grid(Path(folder)) as (coordinator, worker):
        with Kernel(coordinator.http_url, "hasty") as kernel:
            for _ in range(rounds):
                msg_id = kernel.start(CELL)
                for _, kind, content in kernel.messages(msg_id, 60):
                    if kind == "stream" and "begun" in content["text"]:
                        break
                there = set(containers_of(worker.worker_id))
                kernel.manager.interrupt_kernel()
                asked_s = time.perf_counter()
                wait_for(lambda there=there: there - set(containers_of(worker.worker_id)))
                gone_s = time.perf_counter() - asked_s
                wait_for(lambda: coordinator.get("/credits/hasty")["held"] == 0.0)
                closed_s = time.perf_counter() - asked_s
                kernel.finish(msg_id)
                figures.append((gone_s, closed_s))
    return figures


def main(argv: list[str] | None = None) -> None:
    """Run it and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    figures = measure(parser.parse_args(argv).rounds)
    print(f"{'after an interrupt, seconds':36} {'best':>6} {'worst':>6} {'bar':>6}")
    for name, column in (("container gone", 0), ("container gone and hold closed", 1)):
        values = [figure[column] for figure in figures]
        print(f"{name:36} {min(values):6.2f} {max(values):6.2f} {BAR_S:6.1f}")


if __name__ == "__main__":
    main()
