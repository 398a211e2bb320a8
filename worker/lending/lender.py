"""The lender's side of a running worker: it reads, decides, remembers commands, and tells.

What the lender has said outlives the worker: ``lending.json`` in the data folder. A drain does
not, because its end is the worker's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Final

import msgspec

from gridx.errors import InvalidRequest
from gridx.resources import Gpu, PauseReason

from .control import Ask
from .policy import Commands, Decision, OnPause, Readings, Rules, Trail, decide

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 5.0
LONGEST_S: Final = 365 * 24 * 3600.0  # of a pause or a snooze


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Lender:
    """What holds now, and who is told when it changes."""

    def __init__(
        self,
        rules: Rules,
        *,
        read: Callable[[], Readings],
        engine_problem: Callable[[], str | None],
        zone: tzinfo,
        folder: Path,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """
        Args:
            rules: what the lender has set.
            read: what the machine says; it may take a while, and is called in a thread.
            engine_problem: why no sandbox can be started, if so.
            zone: the lender's.
            folder: where commands are kept.
            now: the time, aware.
        """
        self._rules = rules
        self._read = read
        self._engine_problem = engine_problem
        self._zone = zone
        self._path = folder / "lending.json"
        self._now = now
        self._trail = Trail()
        self.readings = Readings()
        self.commands = self._load()
        self.decision = Decision()
        # Told of each new decision, on the event loop.
        self.on_change: Callable[[Decision], None] = lambda decision: None

    @property
    def rules(self) -> Rules:
        """What the lender has set."""
        return self._rules

    async def look(self) -> None:
        """Read the machine, and decide."""
        self.readings = await asyncio.to_thread(self._read)
        self.decide()

    async def run(self) -> None:
        """Look every few seconds, and when something is known to change."""
        while True:
            await asyncio.sleep(self._until_next_s())
            try:
                await self.look()
            except Exception:  # a source that breaks must not end the worker
                _log.exception("this machine cannot be read", extra={"action": "readings"})

    def _until_next_s(self) -> float:
        change = self.decision.next_change
        if change is None:
            return LOOK_EVERY_S
        return min(LOOK_EVERY_S, max(0.05, (change - self._now()).total_seconds()))

    def decide(self) -> None:
        """Decide from what is known, and tell when that is new."""
        now = self._now()
        if (left := self.commands.at(now)) != self.commands:
            self.commands = left
            self._save()
        readings = msgspec.structs.replace(self.readings, engine_problem=self._engine_problem())
        decision, self._trail = decide(
            self._rules, readings, self.commands, self._trail, now=now, zone=self._zone
        )
        before, self.decision = self.decision, decision
        if decision == before:
            return
        if decision.pause != before.pause:
            self._log_pause(decision)
        self.on_change(decision)

    @staticmethod
    def _log_pause(decision: Decision) -> None:
        pause = decision.pause
        if pause is None:
            _log.info("lending again", extra={"action": "resume"})
            return
        _log.info(
            "paused",
            extra={
                "action": "pause",
                "reason": pause.reason.value,
                "message_shown": pause.message,
                "until": pause.until.isoformat() if pause.until else None,
                "jobs": decision.jobs.value,
            },
        )

    # ---- the lender's word

    def obey(self, ask: Ask, gpus: Sequence[Gpu]) -> str:
        """Do what is asked and return what that did, in a sentence.

        Args:
            ask: of the lender.
            gpus: of the machine, in their order.

        Raises:
            InvalidRequest: it cannot be done.
        """
        until = self._until(ask)
        match ask.command:
            case "status":
                return ""
            case "pause":
                self._command(is_paused=True, paused_until=until, jobs=ask.jobs)
                return "Paused."
            case "resume":
                return self._resume()
            case "drain":
                self._command(is_draining=True)
                return "It takes nothing more, and stops when its jobs have ended."
            case "snooze":
                gpu = _gpu(ask.gpu, gpus)
                self._command(snoozed={**self.commands.snoozed, gpu.uuid: until})
                return f"{gpu.name} {gpu.uuid} is not lent until it is woken."
            case "wake":
                gpu = _gpu(ask.gpu, gpus)
                rest = {uuid: at for uuid, at in self.commands.snoozed.items() if uuid != gpu.uuid}
                was_asleep = gpu.uuid in self.commands.snoozed
                self._command(snoozed=rest)
                return f"{gpu.name} {gpu.uuid} is lent{' again' if was_asleep else ', as it was'}."
            case _:
                raise InvalidRequest(
                    f"A worker knows no command {ask.command!r}.",
                    hint="It knows status, pause, resume, drain, snooze and wake.",
                )

    def _resume(self) -> str:
        was = self.commands
        self._command(is_paused=False, paused_until=None, jobs=None, is_draining=False)
        pause = self.decision.pause
        if pause is not None:
            also = "It is still paused" if was.is_paused or was.is_draining else "It is paused"
            return f"{also}, and not by your word: {pause.message} {_way_out(pause.reason)}".strip()
        return "It is lent again." if was.is_paused or was.is_draining else "It was not paused."

    def _command(self, **changes: object) -> None:
        self.commands = msgspec.structs.replace(self.commands, **changes)
        self._save()
        self.decide()

    def _until(self, ask: Ask) -> datetime | None:
        if ask.for_s is None:
            return None
        if not 0 < ask.for_s <= LONGEST_S:
            raise InvalidRequest(
                "--for is a time of up to a year.", hint="Write it as 30m, 2h or 8h30m."
            )
        return self._now() + timedelta(seconds=ask.for_s)

    def _load(self) -> Commands:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Commands)
        except FileNotFoundError:
            return Commands()
        except (OSError, msgspec.MsgspecError) as error:
            # What cannot be read may have been a pause: the machine is its owner's.
            _log.warning(
                "the lender's commands cannot be read: paused until resume",
                extra={"action": "lending", "error": str(error)},
            )
            return Commands(is_paused=True, jobs=OnPause.FREEZE)

    def _save(self) -> None:
        kept = msgspec.structs.replace(self.commands, is_draining=False)
        part = self._path.with_suffix(".part")
        try:
            part.write_bytes(msgspec.json.encode(kept))
            part.replace(self._path)
        except OSError as error:
            _log.warning(
                "the lender's commands cannot be kept over a restart",
                extra={"action": "lending", "error": str(error)},
            )


def _way_out(reason: PauseReason) -> str:
    match reason:
        case PauseReason.HOURS:
            return "Change --hours and start it again to lend it now."
        case PauseReason.ACTIVE:
            return "--pause-when-active off lends it all the same."
        case PauseReason.BATTERY:
            return "Plug it in, or set --pause-on-battery off."
        case PauseReason.CPU_HOT | PauseReason.GPU_HOT:
            return "It is lent again when it has cooled down by five degrees."
        case PauseReason.ENGINE:
            return "`gridx-worker check` says what is wrong with the engine."
        case _:
            return ""


def _gpu(name: str | None, gpus: Sequence[Gpu]) -> Gpu:
    for at, gpu in enumerate(gpus):
        if name in (gpu.uuid, str(at)):
            return gpu
    there = ", ".join(f"{at} {gpu.uuid} ({gpu.name})" for at, gpu in enumerate(gpus))
    raise InvalidRequest(
        f"This worker lends no GPU {name!r}.",
        hint=f"It lends {there}." if there else "It lends none.",
    )
