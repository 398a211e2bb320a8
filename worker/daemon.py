"""The worker's parts, wired: the machine decides, this carries it out, and stops in order."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import Final, assert_never

import msgspec

from gridx.errors import GridXError
from gridx.identity import fingerprint
from gridx.protocol import (
    OLDEST_PROTOCOL,
    PROTOCOL,
    AttemptFinished,
    AttemptRef,
    CallFinished,
    Heartbeat,
    Hello,
    Output,
    Preparing,
    Refused,
    StartAttempt,
    ToWorker,
    Welcome,
)
from gridx.resources import GIB, KIB, MIB, Capability, Pause, PauseReason
from gridx.states import Cause

from .attempt import AttemptListener, AttemptRun
from .blob_cache import BlobCache, default_limit_bytes
from .connection import Connection, is_about_login
from .gpu_meter import GpuSampler
from .home import Home
from .lending.control import Ask, ControlSocket, GpuStatus, JobStatus, Status
from .lending.lender import Lender
from .lending.policy import Decision, Rules
from .lending.readings import Reads, has_desktop, local_zone, this_machine
from .lending.standstill import Standstill
from .machine import (
    LIVE,
    AnyEvent,
    AnyInstruction,
    Begin,
    BeginCall,
    CallEnded,
    CallReport,
    CannotRun,
    CloseSession,
    Disconnected,
    DropResult,
    Ended,
    Forget,
    ForgetCall,
    FreezeSandbox,
    GiveUp,
    HoldOutput,
    InterruptSandbox,
    Machine,
    Offered,
    OutputDue,
    OutputSent,
    OutputWritten,
    PauseChanged,
    Received,
    ReleaseOutput,
    SandboxHasJob,
    Send,
    SendCallReport,
    SendOutput,
    SendReport,
    StopSandbox,
    StopTaking,
    ThawSandbox,
    Ticked,
    Trim,
    Uploaded,
)
from .monitor import Monitor
from .outbox import Outbox
from .probe import MAX_WARM, MEMORY_SHARE, GpuReader, MachineFacts, measure, open_gpus
from .results import Results
from .sandbox.base import SandboxEngine
from .sandbox.limits import WARM_BYTES
from .sandbox.pool import SandboxPool
from .settings import WorkerSettings
from .signing import Signer
from .transfers import BlobTransfers, blob_address

_log = logging.getLogger(__name__)

QUIET_S: Final = 0.005  # output that follows output waits at most so long, to travel together
GATHER_BYTES: Final = 64 * KIB  # unless so much has gathered
SAVE_AFTER_S: Final = 0.05
SAVE_BYTES: Final = 256 * KIB  # or when so much is in memory only
REPORT_WAIT_S: Final = 3.0  # a stop waits so long for the coordinator's last answers
FIRST_HEARTBEAT_S: Final = 10.0
RELEASE_AFTER_S: Final = 60.0  # a pause this long gives back the memory of what waits for jobs
WARM_FOR_A_CORE: Final = 4  # warm sandboxes at most: more are made in the time that they last
WARM_SHARE: Final = 8  # one in so many bytes of the memory is for them, at most
PREPARING_PROTOCOL: Final = 3
SNOOZED: Final = "snoozed"  # why a GPU is withdrawn
LOST: Final = "lost"  # likewise
STOPPING: Final = Pause(reason=PauseReason.DRAINING, message="The worker is stopping.")
SWITCH_INTERVAL_S: Final = 0.0005


def capability_of(
    settings: WorkerSettings, facts: MachineFacts, engine: SandboxEngine, gpus: GpuReader
) -> Capability:
    """Return what is announced: the lender's limits, else what was measured, less the pool."""
    cores = min(settings.cores or float(facts.cores), float(facts.cores))
    return Capability(
        cores=cores,
        memory_bytes=lent_memory(settings, facts, warm=warm_target(settings, facts)),
        slots=settings.slots or max(1, round(2 * cores)),
        sandbox=engine.kind,
        images=engine.images,
        gpus=settings.lent_gpus(gpus.gpus),
        accepts=settings.accepts,
        users=settings.users,
        environments=engine.environments,
        isolation=engine.isolation,
        cpu_model=facts.cpu_model,
        platform=facts.platform,
    )


def lent_memory(settings: WorkerSettings, facts: MachineFacts, *, warm: int) -> int:
    """Return the memory for jobs, in bytes, beside so many warm sandboxes."""
    lent_bytes = settings.memory_bytes or int(facts.memory_bytes * MEMORY_SHARE)
    return max(GIB, min(lent_bytes, facts.memory_bytes) - warm * WARM_BYTES)


def warm_target(settings: WorkerSettings, facts: MachineFacts) -> int:
    """Return how many sandboxes are kept warm when nobody asks for one."""
    cores = min(settings.cores or facts.cores, facts.cores)
    return min(max(1, min(MAX_WARM, round(2 * cores))), settings.warm or MAX_WARM)


def warm_most(settings: WorkerSettings, facts: MachineFacts) -> int:
    """Return how many are kept warm at most: the lender's number, else what the cores can use,
    in an eighth of the memory."""
    resting = warm_target(settings, facts)
    if settings.warm is not None:
        return max(resting, settings.warm)
    cores = min(settings.cores or facts.cores, facts.cores)
    fit = lent_memory(settings, facts, warm=0) // WARM_SHARE // WARM_BYTES
    return max(resting, min(round(WARM_FOR_A_CORE * cores), fit))


def rules_of(settings: WorkerSettings) -> Rules:
    """Return when the lender lends: an owner is watched for only where there is a desktop."""
    when_active = settings.pause_when_active
    return Rules(
        hours=settings.hours,
        pause_when_active=has_desktop() if when_active is None else when_active,
        idle_for_s=settings.idle_for_s,
        pause_on_battery=settings.pause_on_battery,
        max_cpu_temp_c=settings.max_cpu_temp_c,
        max_gpu_temp_c=settings.max_gpu_temp_c,
        on_pause=settings.on_pause,
    )


def hottest(gpus: GpuReader) -> float | None:
    """Return the temperature of the hottest GPU, degrees Celsius; None where none says."""
    return max((state.temperature_c for state in gpus.read() if state.temperature_c), default=None)


class StopAsked:
    """Whether somebody wants the worker to stop: in order, or, asked again, at once."""

    def __init__(self) -> None:
        self.in_order = asyncio.Event()
        self.at_once = asyncio.Event()

    def ask(self) -> None:
        """Take one signal."""
        if self.in_order.is_set():
            self.at_once.set()
        self.in_order.set()


async def serve(
    settings: WorkerSettings,
    home: Home,
    engine: SandboxEngine,
    *,
    version: str,
    say: Callable[[str], None],
) -> None:
    """Be a worker until SIGTERM or SIGINT; return when everything is stopped and removed.

    Args:
        settings: what the lender allows.
        home: the locked data folder.
        engine: starts sandboxes; not prepared yet.
        version: of this distribution, for the hello.
        say: prints the ready line.

    Raises:
        SandboxError: this machine cannot isolate jobs as promised.
        LoginRefused: the coordinator refuses this worker.
    """
    # The engine's client runs in threads: the event loop gets the interpreter back soon.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    stop = StopAsked()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.ask)
    starting = asyncio.create_task(_start(settings, home, engine, version, say, stop))
    asked = asyncio.create_task(stop.in_order.wait())
    try:
        await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        daemon = starting.result()
        # All that was loaded until now stays: no collection walks through it again.
        gc.collect()
        gc.freeze()
        await daemon.run()
    finally:
        asked.cancel()
        await engine.close()


async def _start(
    settings: WorkerSettings,
    home: Home,
    engine: SandboxEngine,
    version: str,
    say: Callable[[str], None],
    stop: StopAsked,
) -> Daemon:
    """Do all that comes before the first hello: the checks, and the first warm sandbox."""
    facts = measure()
    await engine.prepare()
    gpus = open_gpus()
    capability = capability_of(settings, facts, engine, gpus)
    pool = SandboxPool(
        engine,
        target=warm_target(settings, facts),
        most=warm_most(settings, facts),
        parallel=min(2, int(capability.cores) or 1),
        gpus=capability.gpus,
    )
    try:
        await pool.fill_first()
    except BaseException:
        await pool.close()
        raise
    rules = await asyncio.to_thread(rules_of, settings)
    machine = this_machine(Reads(lambda: hottest(gpus)), watches_owner=rules.pause_when_active)
    lender = Lender(
        rules,
        read=machine.read,
        engine_problem=lambda: pool.problem,
        zone=local_zone(),
        folder=home.folder,
    )
    await lender.look()
    return Daemon(
        settings,
        home,
        pool,
        lender,
        capability=msgspec.structs.replace(capability, gpus=pool.gpus),
        facts=facts,
        monitor=Monitor(gpus),
        version=version,
        say=say,
        stop=stop,
    )


class Daemon:
    """One worker that is ready to be announced."""

    def __init__(
        self,
        settings: WorkerSettings,
        home: Home,
        pool: SandboxPool,
        lender: Lender,
        *,
        capability: Capability,
        facts: MachineFacts,
        monitor: Monitor,
        version: str,
        say: Callable[[str], None],
        stop: StopAsked,
    ) -> None:
        self._settings = settings
        self._home = home
        self._signer = Signer(home.folder / "key")
        self._pool = pool
        self._lender = lender
        self._facts = facts
        self._machine_gpus = pool.all_gpus
        self._releasing: asyncio.TimerHandle | None = None
        self._control = ControlSocket(home.folder, self._obey)
        self._monitor = monitor
        self._gpus = GpuSampler(monitor.read_gpus)
        self._protocol = OLDEST_PROTOCOL
        self._version = version
        self._say = say
        self._stop = stop
        self._outbox = Outbox(home.outbox)
        self._transfers = BlobTransfers()
        self._results = Results(
            self._transfers, folder=self._outbox.folder, limit_bytes=settings.max_result_bytes
        )
        cache_bytes = settings.cache_bytes
        self._blobs = BlobCache(
            home.blobs,
            self._transfers,
            limit_bytes=default_limit_bytes(home.blobs) if cache_bytes is None else cache_bytes,
        )
        self._delivering: dict[AttemptRef, set[asyncio.Task[None]]] = {}
        self._machine = Machine(owner=settings.user, capability=capability)
        self._take_up()
        self._runs: dict[AttemptRef, tuple[AttemptRun, asyncio.Task[None]]] = {}
        self._standstill = Standstill(
            find=lambda ref: self._runs[ref][0] if ref in self._runs else None,
            tell=self._tell,
            freeze_for_s=settings.freeze_for_s,
        )
        self._due: dict[AttemptRef, asyncio.TimerHandle] = {}
        self._sent_at_s: dict[AttemptRef, float] = {}
        self._unsaved: set[AttemptRef] = set()
        self._saving: asyncio.TimerHandle | None = None
        self._todo: deque[AnyInstruction] = deque()
        self._is_working = False
        self._changed = asyncio.Event()
        self._welcomed = asyncio.Event()
        self._heartbeat_s = FIRST_HEARTBEAT_S
        self._uses_token = False
        self._listener = AttemptListener(
            started=self._on_started,
            output=self._on_output,
            call_ended=self._on_call_ended,
            ended=self._on_ended,
            cannot_run=lambda ref, why: self._tell(CannotRun(ref=ref, reason=why)),
            preparing=self._on_preparing,
        )
        pool.on_change = self._offer
        self._connection = Connection(
            settings.coordinator,
            hello=self._hello,
            on_message=self._on_message,
            on_lost=lambda: self._tell(Disconnected()),
            on_refused=self._on_refused,
        )

    def _take_up(self) -> None:
        """Take up what an earlier run has left in the outbox."""
        for left in self._outbox.restore():
            if left.spool is None:
                self._machine.restore_lost(left.ref)
                continue
            self._machine.restore(
                left.ref,
                start=left.spool.start,
                end=left.spool.end,
                calls=[
                    CallReport(
                        call=ended.call,
                        stream_bytes=ended.stream_bytes,
                        is_uploading=bool(ended.result_blobs),
                    )
                    for ended in left.calls
                ],
                is_finished=left.report is not None,
                is_uploading=left.report is not None and bool(left.report.result_blobs),
            )
            for report in (*left.calls, left.report):
                if report is not None and report.result_blobs:
                    self._deliver(left.ref, report)

    # ---- life

    async def run(self) -> None:
        """Register and work until asked to stop; then stop in order.

        Raises:
            LoginRefused: the coordinator refuses this worker.
        """
        await self._control.open()
        self._lender.on_change = self._on_decision
        self._on_decision(self._lender.decision)
        lending = asyncio.create_task(self._lender.run())
        connecting = asyncio.create_task(self._connection.run())
        beating = asyncio.create_task(self._beat())
        metering = asyncio.create_task(self._gpus.run())
        asked = asyncio.create_task(self._stop.in_order.wait())
        try:
            done, _ = await asyncio.wait(
                {connecting, beating, asked}, return_when=asyncio.FIRST_COMPLETED
            )
            if asked in done:
                await self._drain()
            for task in done - {asked}:
                task.result()
        finally:
            await self._connection.close()
            ended = (connecting, beating, asked, lending, metering)
            for task in ended:
                task.cancel()
            await asyncio.gather(*ended, return_exceptions=True)
            await self._close()

    async def _drain(self) -> None:
        """Finish what can be finished in time, hand back the rest, wait for the last answers."""
        _log.info("stopping", extra={"action": "stop", "running": self._machine.live_count()})
        self._lender.on_change = lambda decision: None
        # Said before anything is handed back: what a paused worker hands back is no try.
        jobs = self._lender.decision.jobs
        self._tell(PauseChanged(pause=self._machine.pause or STOPPING, jobs=jobs))
        self._tell(StopTaking())
        await self._until(lambda: self._machine.unfinished_count() == 0, self._settings.drain_s)
        self._tell(GiveUp())
        if self._connection.is_open:
            await self._until(lambda: self._machine.unsettled_count() == 0, REPORT_WAIT_S)

    async def _until(self, holds: Callable[[], bool], at_most_s: float) -> None:
        """Wait until ``holds`` does, the time is up, or somebody is in a hurry."""
        hurry = asyncio.create_task(self._stop.at_once.wait())
        try:
            async with asyncio.timeout(at_most_s):
                while not holds() and not hurry.done():
                    self._changed.clear()
                    change = asyncio.create_task(self._changed.wait())
                    await asyncio.wait({change, hurry}, return_when=asyncio.FIRST_COMPLETED)
                    change.cancel()
        except TimeoutError:
            pass
        finally:
            hurry.cancel()

    async def _close(self) -> None:
        await self._control.close()
        self._standstill.close()
        if self._releasing is not None:
            self._releasing.cancel()
        for _, task in self._runs.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in self._runs.values()), return_exceptions=True)
        await self._pool.close()
        for delivery in [task for tasks in self._delivering.values() for task in tasks]:
            delivery.cancel()
        await self._results.close()
        await asyncio.to_thread(self._transfers.close)
        if self._saving is not None:
            self._saving.cancel()
        self._outbox.close()

    # ---- the coordinator

    def _hello(self) -> Hello:
        settings = self._settings
        token = self._home.token_for(settings.user, settings.coordinator)
        self._uses_token = token is not None
        signed_at, signature = self._signer.sign_hello(self._home.identity.worker_id, settings.user)
        return Hello(
            protocol_min=OLDEST_PROTOCOL,
            protocol_max=PROTOCOL,
            worker_id=self._home.identity.worker_id,
            name=settings.name,
            user=settings.user,
            password=settings.password if token is None else None,
            token=token,
            capability=self._machine.capability,
            running=self._machine.held(),
            version=self._version,
            public_key=self._signer.public_key,
            signed_at=signed_at,
            signature=signature,
        )

    def _on_refused(self, error: GridXError) -> bool:
        if self._uses_token and is_about_login(error) and self._settings.password is not None:
            _log.info("the stored token is refused", extra={"action": "login"})
            self._home.keep_token(self._settings.user, self._settings.coordinator, None)
            return True
        return False

    def _on_message(self, message: ToWorker) -> None:
        if isinstance(message, Welcome):
            self._on_welcome(message)
        elif isinstance(message, Refused):
            _log.error(
                "the coordinator refused a message",
                extra={
                    "action": "refused",
                    "job_id": message.job_id,
                    "error": message.error.message,
                },
            )
        self._tell(Received(message=message))
        if isinstance(message, Welcome) and not self._welcomed.is_set():
            self._welcomed.set()
            self._say(
                f"ready worker={self._home.identity.worker_id}"
                f" sandbox={self._machine.capability.sandbox}"
            )

    def _on_welcome(self, welcome: Welcome) -> None:
        self._heartbeat_s = welcome.heartbeat_s
        self._protocol = welcome.protocol
        settings = self._settings
        if welcome.token is not None:
            self._home.keep_token(settings.user, settings.coordinator, welcome.token)
        self._transfers.connect(
            blob_address(welcome.http_url, settings.coordinator),
            self._home.token_for(settings.user, settings.coordinator),
        )
        _log.info(
            "registered",
            extra={
                "action": "connect",
                "worker_id": self._home.identity.worker_id,
                "key": fingerprint(self._signer.public_key),
                "adopted": len(welcome.adopted),
                "stopped": len(welcome.stop),
            },
        )

    async def _beat(self) -> None:
        await self._welcomed.wait()
        while True:
            self._pool.prune()
            if self._machine_gpus:
                await self._look_at_gpus()
            if self._connection.is_open:
                self._connection.send(
                    Heartbeat(
                        running=self._machine.running(),
                        load=self._monitor.read(warm_sandboxes=self._pool.warm),
                    )
                )
                self._tell(Ticked())
            await asyncio.sleep(self._heartbeat_s)

    async def _look_at_gpus(self) -> None:
        """Withdraw a device that is lost; lend it again when it answers again."""
        for uuid, state in (await asyncio.to_thread(self._monitor.read_gpus)).items():
            if state.is_lost:
                self._pool.withdraw_gpu(uuid, LOST)
            else:
                self._pool.return_gpu(uuid, LOST)

    # ---- the lender

    def _on_decision(self, decision: Decision) -> None:
        """Do what the lender's settings and words come to now."""
        pause = decision.pause
        if self._releasing is not None:
            self._releasing.cancel()
            self._releasing = None
        if pause is None:
            self._pool.resume()
        elif pause.reason is not PauseReason.ENGINE:  # what is broken must be tried again
            self._pool.pause()
            loop = asyncio.get_running_loop()
            self._releasing = loop.call_later(RELEASE_AFTER_S, self._pool.release)
        for gpu in self._machine_gpus:
            if gpu.uuid in decision.withdrawn_gpus:
                self._pool.withdraw_gpu(gpu.uuid, SNOOZED)
            else:
                self._pool.return_gpu(gpu.uuid, SNOOZED)
        self._offer()
        self._tell(PauseChanged(pause=pause, jobs=decision.jobs))

    def _offer(self) -> None:
        """Tell the coordinator when other GPUs, or more or less memory, can be lent than before:
        what warm sandboxes take is not a job's."""
        offered = msgspec.structs.replace(
            self._machine.offered,
            gpus=self._pool.gpus,
            memory_bytes=lent_memory(self._settings, self._facts, warm=self._pool.reserved),
        )
        if offered != self._machine.offered:
            self._tell(Offered(capability=offered))

    def _obey(self, ask: Ask) -> Status:
        note = self._lender.obey(ask, self._machine_gpus)
        lender, machine, settings = self._lender, self._machine, self._settings
        decision, hours = lender.decision, lender.rules.hours
        snoozed = lender.commands.snoozed
        return Status(
            worker_id=self._home.identity.worker_id,
            name=settings.name,
            user=settings.user,
            coordinator=settings.coordinator,
            is_connected=self._connection.is_open,
            version=self._version,
            pid=os.getpid(),
            pause=machine.pause,
            is_draining=decision.is_draining,
            next_change=decision.next_change,
            hours="always" if hours is None else hours.text,
            on_pause=lender.rules.on_pause,
            accepts=settings.accepts,
            users=settings.users,
            cores=machine.offered.cores,
            memory_bytes=machine.offered.memory_bytes,
            slots=machine.offered.slots,
            warm_sandboxes=self._pool.warm,
            jobs=tuple(
                JobStatus(
                    ref=ref,
                    user=run.user,
                    running_s=run.running_s,
                    is_session=machine.attempts[ref].is_session,
                    is_frozen=machine.attempts[ref].stands_still,
                )
                for ref, (run, _) in self._runs.items()
                if ref in machine.attempts and machine.attempts[ref].phase in LIVE
            ),
            gpus=tuple(
                GpuStatus(
                    gpu=gpu, is_snoozed=gpu.uuid in snoozed, snoozed_until=snoozed.get(gpu.uuid)
                )
                for gpu in self._machine_gpus
            ),
            readings=lender.readings,
            note=note,
        )

    # ---- the machine

    def _tell(self, event: AnyEvent) -> None:
        """Give ``event`` to the machine and do what it says, in order.

        Doing one thing may tell the machine the next: that is queued, not nested.
        """
        self._todo.extend(self._machine.handle(event))
        self._changed.set()
        if self._is_working:
            return
        self._is_working = True
        try:
            while self._todo:
                self._do(self._todo.popleft())
        finally:
            self._is_working = False
        if self._lender.decision.is_draining and not self._machine.unfinished_count():
            self._stop.in_order.set()

    def _do(self, instruction: AnyInstruction) -> None:
        match instruction:
            case Send(message=message):
                self._connection.send(message)
            case SendOutput(ref=ref, start=start, budget_bytes=budget):
                self._send_output(ref, start, budget)
            case SendReport(ref=ref):
                self._connection.send(self._outbox.report(ref))
            case SendCallReport(ref=ref, call=call):
                self._connection.send(self._outbox.call_report(ref, call))
            case Begin(start=start_attempt):
                self._begin(start_attempt)
            case BeginCall(start=start_call):
                ref = AttemptRef(job_id=start_call.job_id, attempt=start_call.attempt)
                if ref in self._runs:
                    self._runs[ref][0].begin_call(start_call)
            case InterruptSandbox(ref=ref, call=call):
                if ref in self._runs:
                    self._runs[ref][0].interrupt(call)
            case CloseSession(ref=ref):
                if ref in self._runs:
                    self._runs[ref][0].end_session()
            case StopSandbox(ref=ref, report=report):
                self._stop_run(ref, report=report)
            case HoldOutput(ref=ref):
                if ref in self._runs:
                    self._runs[ref][0].hold()
            case ReleaseOutput(ref=ref):
                if ref in self._runs:
                    self._runs[ref][0].release()
            case FreezeSandbox(ref=ref):
                is_session = self._machine.attempts[ref].is_session
                self._standstill.freeze(ref, is_session=is_session)
            case ThawSandbox(ref=ref):
                self._standstill.thaw(ref)
            case Trim(ref=ref, offset=offset):
                self._outbox.spool(ref).trim(offset)
            case DropResult(ref=ref):
                self._drop_result(ref)
            case ForgetCall(ref=ref, call=call):
                self._outbox.forget_call(ref, call)
            case Forget(ref=ref):
                for delivery in self._delivering.pop(ref, ()):
                    delivery.cancel()
                self._results.forget(ref)
                self._outbox.forget(ref)
                self._unsaved.discard(ref)
                self._cancel_due(ref)
                self._sent_at_s.pop(ref, None)
            case _:
                assert_never(instruction)

    def _begin(self, start: StartAttempt) -> None:
        run = AttemptRun(
            start,
            self._pool,
            self._listener,
            blobs=self._blobs,
            results=self._results,
            gpus=self._gpus,
        )
        self._outbox.begin(run.ref)
        task = asyncio.create_task(run.run())
        self._runs[run.ref] = (run, task)
        task.add_done_callback(lambda done: self._run_over(run.ref, done))

    def _run_over(self, ref: AttemptRef, task: asyncio.Task[None]) -> None:
        if ref in self._runs and self._runs[ref][1] is task:
            del self._runs[ref]
            self._standstill.forget(ref)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("an attempt failed here", exc_info=error, extra={"job_id": ref.job_id})
            self._tell(CannotRun(ref=ref, reason="The worker failed to run it."))
        self._changed.set()

    def _stop_run(self, ref: AttemptRef, *, report: bool) -> None:
        if ref not in self._runs:
            return
        run, task = self._runs[ref]
        if report:
            run.stop()
        else:
            task.cancel()

    # ---- what the attempts say

    def _on_started(self, ref: AttemptRef, call: int) -> None:
        self._tell(SandboxHasJob(ref=ref, call=call))
        self._save_soon(ref)

    def _on_preparing(self, ref: AttemptRef, step: str) -> None:
        if self._protocol >= PREPARING_PROTOCOL and self._connection.is_open:
            self._connection.send(Preparing(job_id=ref.job_id, attempt=ref.attempt, message=step))

    def _on_output(self, ref: AttemptRef, data: bytes) -> None:
        if ref not in self._machine.attempts:
            return  # fenced off meanwhile
        spool = self._outbox.spool(ref)
        end = spool.append(data)
        self._tell(OutputWritten(ref=ref, end=end))
        waited_s = self._now_s() - self._sent_at_s.get(ref, -1.0)
        attempt = self._machine.attempts.get(ref)
        is_much = attempt is not None and end - attempt.sent >= GATHER_BYTES
        if waited_s >= QUIET_S or is_much:
            self._cancel_due(ref)
            self._tell(OutputDue(ref=ref))
        elif ref not in self._due:
            loop = asyncio.get_running_loop()
            self._due[ref] = loop.call_later(QUIET_S - waited_s, self._output_due, ref)
        if spool.unwritten_bytes >= SAVE_BYTES:
            self._outbox.save(ref)
        else:
            self._save_soon(ref)

    def _output_due(self, ref: AttemptRef) -> None:
        self._due.pop(ref, None)
        self._tell(OutputDue(ref=ref))

    def _cancel_due(self, ref: AttemptRef) -> None:
        timer = self._due.pop(ref, None)
        if timer is not None:
            timer.cancel()

    def _send_output(self, ref: AttemptRef, start: int, budget_bytes: int) -> None:
        data = self._outbox.spool(ref).read(start, min(budget_bytes, MIB))
        attempt = self._machine.attempts[ref]
        self._connection.send(
            Output(
                job_id=ref.job_id,
                attempt=ref.attempt,
                call=attempt.call,
                offset=start,
                data=data,
            )
        )
        self._sent_at_s[ref] = self._now_s()
        self._tell(OutputSent(ref=ref, end=start + len(data)))

    def _on_call_ended(self, report: CallFinished) -> None:
        ref = AttemptRef(job_id=report.job_id, attempt=report.attempt)
        if ref not in self._machine.attempts:
            return  # fenced off meanwhile
        self._cancel_due(ref)
        self._outbox.keep_call_report(report)
        is_uploading = bool(report.result_blobs)
        self._tell(
            CallEnded(
                ref=ref,
                call=report.call,
                stream_bytes=report.stream_bytes,
                is_uploading=is_uploading,
            )
        )
        if is_uploading:
            self._deliver(ref, report)
        self._save_soon(ref)

    def _on_ended(self, report: AttemptFinished) -> None:
        ref = AttemptRef(job_id=report.job_id, attempt=report.attempt)
        if ref not in self._machine.attempts:
            return  # fenced off meanwhile
        self._cancel_due(ref)
        self._outbox.keep_report(report)
        is_uploading = bool(report.result_blobs)
        self._tell(Ended(ref=ref, stream_bytes=report.stream_bytes, is_uploading=is_uploading))
        if is_uploading:
            self._deliver(ref, report)
        self._save_soon(ref)

    # ---- large results

    def _deliver(self, ref: AttemptRef, report: AttemptFinished | CallFinished) -> None:
        """Put the blobs of a result, in the background; then its report may go."""
        task = asyncio.ensure_future(self._put_result(ref, report))
        self._delivering.setdefault(ref, set()).add(task)
        task.add_done_callback(lambda done: self._delivering.get(ref, set()).discard(done))

    async def _put_result(self, ref: AttemptRef, report: AttemptFinished | CallFinished) -> None:
        try:
            await self._results.deliver(ref, report.call, report.result_blobs)
        except (GridXError, OSError) as error:
            _log.error(
                "a result could not be delivered",
                extra={"action": "result", "job_id": ref.job_id, "error": str(error)},
            )
            why = error.message if isinstance(error, GridXError) else f"{error}."
            self._replace_report(
                report, Cause.SANDBOX_FAILED, f"The result could not be delivered: {why}"
            )
        call = report.call if isinstance(report, CallFinished) else None
        self._tell(Uploaded(ref=ref, call=call))

    def _drop_result(self, ref: AttemptRef) -> None:
        for delivery in self._delivering.pop(ref, ()):
            delivery.cancel()
        report = self._outbox.report(ref)
        self._results.drop(ref, report.call)
        self._replace_report(report, Cause.CANCELLED, "Cancelled.")
        self._tell(Uploaded(ref=ref))

    def _replace_report(
        self, report: AttemptFinished | CallFinished, cause: Cause, message: str
    ) -> None:
        """Report without its result, because of ``cause``."""
        other = msgspec.structs.replace(report, cause=cause, message=message, result_blobs=())
        if isinstance(other, AttemptFinished):
            self._outbox.keep_report(other)
        else:
            self._outbox.keep_call_report(other)
        self._save_soon(AttemptRef(job_id=report.job_id, attempt=report.attempt))

    # ---- the disk

    def _save_soon(self, ref: AttemptRef) -> None:
        """Write what the outbox holds of the attempt, when it has not been settled by then.

        Sending comes first: neither the disk nor the file system is on the way of an answer,
        and a short cell never touches them. A worker that is killed within this time leaves no
        trace of it, and the coordinator gives the job to another at the next hello.
        """
        self._unsaved.add(ref)
        if self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(SAVE_AFTER_S, self._save)

    def _save(self) -> None:
        self._saving = None
        unsaved, self._unsaved = self._unsaved, set()
        for ref in unsaved:
            try:
                self._outbox.save(ref)
            except OSError as error:
                _log.error(
                    "the outbox cannot be written",
                    extra={"action": "outbox", "job_id": ref.job_id, "error": str(error)},
                )
                self._tell(CannotRun(ref=ref, reason="The worker's disk is full or gone."))

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()
