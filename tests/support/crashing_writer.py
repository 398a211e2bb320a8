"""A program that submits, claims and settles jobs as fast as it can until somebody kills it.

Prints a line for each operation after the store has acknowledged it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from coordinator.services.cancel import cancel
from coordinator.services.finish import finish
from coordinator.services.submit import submit
from coordinator.settings import Settings
from coordinator.store import workers
from coordinator.store.engine import Store
from coordinator.store.records import WorkerRecord
from gridx.errors import InsufficientCredits
from tests.support.database import order, report

CALLERS = 32
USERS = 10


async def main(folder: Path) -> None:
    settings = Settings(data_dir=folder)
    store = Store(settings.database_url)
    await store.open()
    (worker,) = await store.read(lambda tx, now_us: workers.list_all(tx, None))

    async def work(which: int) -> None:
        while True:
            try:
                await one_job(f"user{which % USERS}", which % 3 == 0)
            except InsufficientCredits:
                await asyncio.sleep(0)

    async def one_job(user: str, is_cancelled: bool) -> None:
        given: WorkerRecord | None = None if is_cancelled else worker
        made = order(user)
        await store.run(submit, settings, made, 0.0, given)
        say("submitted", made.job_id)
        if is_cancelled:
            await store.run(cancel, settings, made.job_id, user)
            say("cancelled", made.job_id)
        else:
            await store.run(finish, settings, report(made.job_id), worker, 0)
            say("completed", made.job_id)

    await asyncio.gather(*(work(which) for which in range(CALLERS)))


def say(*words: str) -> None:
    os.write(1, " ".join(words).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
