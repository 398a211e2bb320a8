"""The lender's side of a worker over time: readings, the lender's word, and what is kept of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gridx.errors import InvalidRequest
from gridx.resources import GIB, Gpu, PauseReason
from worker.lending.control import Ask
from worker.lending.hours import parse_hours
from worker.lending.lender import LOOK_EVERY_S, Lender
from worker.lending.policy import Decision, OnPause, Readings, Rules

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
GPUS = (
    Gpu(uuid="GPU-a", name="A100", memory_bytes=40 * GIB),
    Gpu(uuid="GPU-b", name="A100", memory_bytes=40 * GIB),
)


class Machine:
    """A machine whose readings and clock a test sets."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self.now = NOW
        self.readings = Readings()
        self.engine_problem: str | None = None
        self.said: list[Decision] = []
        self.lender = Lender(
            rules,
            read=lambda: self.readings,
            engine_problem=lambda: self.engine_problem,
            zone=UTC,
            folder=folder,
            now=lambda: self.now,
        )
        self.lender.on_change = self.said.append

    async def after(self, passed_s: float, **readings: object) -> PauseReason | None:
        self.now += timedelta(seconds=passed_s)
        self.readings = Readings(**readings)  # type: ignore[arg-type]
        await self.lender.look()
        pause = self.lender.decision.pause
        return None if pause is None else pause.reason

    def ask(self, command: str, **more: object) -> str:
        return self.lender.obey(Ask(command=command, **more), GPUS)  # type: ignore[arg-type]


async def test_each_change_is_told_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Rules(pause_when_active=True, idle_for_s=60))
    assert await machine.after(0) is None
    assert machine.said == []
    assert await machine.after(5, owner_idle_s=0.0) is PauseReason.ACTIVE
    assert await machine.after(5, owner_idle_s=5.0) is PauseReason.ACTIVE
    assert await machine.after(55, owner_idle_s=60.0) is None
    assert [decision.pause is None for decision in machine.said] == [False, True]


async def test_an_engine_that_starts_nothing_is_a_reason_and_its_recovery_an_end(
    tmp_path: Path,
) -> None:
    machine = Machine(tmp_path, Rules())
    machine.engine_problem = "The Docker engine refused."
    assert await machine.after(0) is PauseReason.ENGINE
    assert machine.lender.decision.jobs is OnPause.FINISH
    machine.engine_problem = None
    assert await machine.after(5) is None


async def test_the_lenders_word_is_kept_over_a_restart_but_for_a_drain(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Rules())
    machine.ask("pause", for_s=3600.0, jobs=OnPause.FINISH)
    machine.ask("snooze", gpu="1")
    machine.ask("drain")
    again = Machine(tmp_path, Rules())
    assert again.lender.commands.jobs is OnPause.FINISH
    assert await again.after(0) is PauseReason.ASKED
    assert again.lender.decision.withdrawn_gpus == ("GPU-b",)
    assert not again.lender.decision.is_draining
    assert await again.after(3600) is None
    assert Machine(tmp_path, Rules()).lender.commands.snoozed == {"GPU-b": None}


async def test_what_cannot_be_read_of_it_is_taken_for_a_pause(tmp_path: Path) -> None:
    (tmp_path / "lending.json").write_text("{")
    machine = Machine(tmp_path, Rules())
    assert await machine.after(0) is PauseReason.ASKED
    assert machine.ask("resume") == "It is lent again."


async def test_a_pause_that_is_not_by_ones_word_is_not_taken_back_by_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Rules(hours=parse_hours("18-20")))
    assert await machine.after(0) is PauseReason.HOURS
    assert machine.ask("resume").startswith("It is paused, and not by your word: It is lent at")
    machine.ask("pause")
    assert machine.ask("resume").startswith("It is still paused")


async def test_a_gpu_snoozes_by_index_or_uuid_and_wakes_by_itself(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Rules())
    machine.ask("snooze", gpu="GPU-a", for_s=60.0)
    await machine.after(60)
    assert [decision.withdrawn_gpus for decision in machine.said] == [("GPU-a",), ()]
    machine.ask("snooze", gpu="0")
    assert machine.ask("wake", gpu="0").endswith("is lent again.")
    with pytest.raises(InvalidRequest, match="no GPU '2'") as refused:
        machine.ask("snooze", gpu="2")
    assert "0 GPU-a" in refused.value.hint


async def test_a_time_that_is_none_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Rules())
    for for_s in (0.0, -1.0, 1e12):
        with pytest.raises(InvalidRequest, match="up to a year"):
            machine.ask("pause", for_s=for_s)


async def test_it_looks_again_when_something_is_known_to_change(tmp_path: Path) -> None:
    machine = Machine(tmp_path, Rules())
    assert machine.lender._until_next_s() == LOOK_EVERY_S
    machine.ask("pause", for_s=2.0)
    assert machine.lender._until_next_s() == 2.0
