"""The thin shell around the update machine: feeds it events, performs its effects in their order, runs its activities.

Rules. One event at a time. Progress is durable before any other effect of its step. One activity at a time: the one
of the machine's state; it is stopped, and has ended, before the next begins, and what a stopped one still says is not
heard. Orders, intents and closings are levels: after every change of what is held they are looked at again as a whole.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from device.bootenv import MAX_TRIES, BootEnvironmentError
from device.clearance import Clearance
from device.gates.local import Moment
from device.gates.pausing import Pause
from device.health import PingEnd
from device.levels import events_of
from device.offload import Worker
from device.progress import (
    Arm,
    Asker,
    CommitBoot,
    CommitRead,
    Disarm,
    Effect,
    Event,
    GateRefused,
    GatesPassed,
    KeepTrying,
    Persist,
    Reboot,
    RecheckDue,
    Revert,
    RollbackAsked,
    SecondRollbackAsked,
    SignoffBegan,
    SignoffOverdue,
    Started,
    Step,
)
from device.recovery import ignored_by_bootloader
from device.returning import read_back
from device.signoff import remaining_s, why_no_rollback
from device.staging import Staging
from device.trial import Trial
from device.update import ACTIVITY, Activity, advance
from wavemesh.errors import GateError
from wavemesh.replacement import replaced
from wavemesh.runtime.durable import DiskFaultError
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Callable

    from device.equipment import Equipment
    from device.progress import Progress, Target
    from device.status import StatusReporter

MAX_EVENTS = 256
SIGNOFF_TRIES = 3


class Agent:
    """Runs one device."""

    def __init__(
        self, equipment: Equipment, status: StatusReporter, watch: Callable[[UpdateState], None] = lambda _: None
    ) -> None:
        """``watch`` is told the state after every step and every look at the levels; ``run`` does the rest."""
        self._watch = watch
        self._equipment = equipment
        self._status = status
        self._events: deque[tuple[int | None, Event]] = deque()
        self._wake = asyncio.Event()
        self._levels_changed = True
        self._changed = asyncio.Event()
        self._all_heard = asyncio.Event()
        self._generation = 0
        self._activity: asyncio.Task[None] | None = None
        self._progress = equipment.store.document.progress

    @property
    def progress(self) -> Progress:
        """Where the machine is."""
        return self._progress

    async def take_up(self) -> None:
        """Return once the machine has heard what was asked so far; ``progress`` knows of it from then on."""
        await self._all_heard.wait()

    def resources_changed(self) -> None:
        """What is held changed, or the session opened."""
        self._levels_changed = True
        self._changed.set()
        self._wake.set()

    def ask_rollback(self, evidence: str) -> str:
        """A local operator wants the previous slot; returns why nothing will come of it, empty if something will."""
        equipment = self._equipment
        packed = equipment.packed_boot()
        return self._asked(RollbackAsked(evidence, equipment.boot_control.read(), Asker.LOCAL, packed=packed))

    def ask_second_rollback(self, evidence: str) -> str:
        """A local operator wants the packed last known good; returns the same."""
        packed = self._equipment.packed_boot()
        if packed is None:
            return "no earlier image is packed"
        return self._asked(SecondRollbackAsked(evidence, packed, Asker.LOCAL))

    def _asked(self, asked: RollbackAsked | SecondRollbackAsked) -> str:
        refusal = why_no_rollback(self._progress, asked, self._equipment.node_id.name)
        if not refusal:
            self._post(None, asked)
        return refusal

    async def run(self) -> None:
        """Derive the state from the boot, then work until cancelled."""
        equipment = self._equipment
        environment = equipment.boot_control.read()
        equipment.log.wave_id = self._progress.wave_id
        equipment.log.note(
            f"agent starts on slot {equipment.record.boot.slot.value} after {equipment.record.reset_reason.value},"
            f" boot {equipment.record.boot_id[:8]}, state {self._progress.state.name}"
        )
        await equipment.gates.look()
        started = Started(equipment.record, environment, equipment.clock.monotonic())
        ignored = ignored_by_bootloader(self._progress, started)
        if ignored:
            raise BootEnvironmentError(ignored)
        async with asyncio.TaskGroup() as group:
            await self._handle(group, started)
            self._begin(group)
            group.create_task(self._tick())
            while True:
                await self._work(group)

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """One event, or one look at the levels, or a wait for either."""
        if self._levels_changed:
            self._levels_changed = False
            for event in events_of(self._equipment, self._progress):
                await self._handle(group, event)
            self._watch(self._progress.state)
            return
        if self._events:
            generation, event = self._events.popleft()
            if not self._events:
                self._all_heard.set()  # who waits for it runs after the step below began, and that sets the progress
            if generation in {None, self._generation}:
                await self._handle(group, event)
            return
        self._wake.clear()
        await self._wake.wait()

    async def _tick(self) -> None:
        """Orders expire without anybody saying so, and batteries drain."""
        while True:
            await asyncio.sleep(self._equipment.config.timing.recheck_interval_s)
            await self._equipment.gates.look()
            self.resources_changed()

    def _post(self, generation: int | None, event: Event) -> None:
        """Queue an event; one of an activity counts only while that activity is the present one."""
        if len(self._events) < MAX_EVENTS:
            self._events.append((generation, event))
            self._all_heard.clear()
        self._wake.set()

    # --- steps -------------------------------------------------------------------------------------------------------

    async def _handle(self, group: asyncio.TaskGroup, event: Event) -> None:
        before = self._progress
        step = advance(before, event)
        self._progress = step.progress
        self._equipment.log.wave_id = step.progress.wave_id
        other_work = _is_other_work(before, step.progress)
        if other_work:
            await self._stop()
            self._describe(before, step)
        for effect in step.effects:
            await self._perform(effect)
        self._status.show(self._progress)
        self._watch(self._progress.state)
        if other_work:
            self._begin(group)
            self._levels_changed = True

    async def _perform(self, effect: Effect) -> None:  # one case per effect
        equipment = self._equipment
        match effect:
            case Persist():
                await self._persist(effect)
            case Arm(boot):
                async with Worker() as worker:  # RAUC takes its time, and so may a medium
                    await worker.run(equipment.boot_control.arm, boot)
                await equipment.power.step("armed")
            case Disarm():
                if equipment.boot_control.read().trial is not None:
                    equipment.boot_control.disarm()
            case KeepTrying():
                equipment.boot_control.keep_trying(min(SIGNOFF_TRIES, MAX_TRIES))
            case CommitBoot():
                await self._write_active(equipment.boot_control.commit)
            case Revert():
                await self._write_active(equipment.boot_control.revert)
            case Reboot():
                equipment.log.note("reboots")
                await equipment.power.reboot()

    async def _persist(self, words: Persist) -> None:
        equipment = self._equipment
        try:
            if equipment.store.persist(self._progress, words, equipment.record.boot_id, equipment.facts()):
                self._status.wake()
        except DiskFaultError as error:
            # A rollback never waits for the disk: the boot environment alone brings the old slot back.
            if self._progress.state is not UpdateState.ROLLING_BACK:
                raise
            equipment.log.fail(f"rolls back without a record: {error}")
        self._status.show(self._progress)
        await equipment.power.step(f"state:{self._progress.state.name}")

    async def _write_active(self, write: Callable[[], None]) -> None:
        """Make the running trial the active boot; what came of it is read back and looked at as an event."""
        control = self._equipment.boot_control
        try:
            async with Worker() as worker:
                await worker.run(write)
        except (BootEnvironmentError, DiskFaultError) as error:
            self._equipment.log.fail(f"the commit was not written: {error}")
        await self._equipment.power.step("committed")
        self._post(self._generation, CommitRead(control.read()))

    def _describe(self, before: Progress, step: Step) -> None:
        after = step.progress
        why = f": {after.gate}: {after.evidence}" if after.gate else ""
        self._equipment.log.note(f"{before.state.name} -> {after.state.name} (attempt {after.attempt}){why}")

    # --- activities --------------------------------------------------------------------------------------------------

    async def _stop(self) -> None:
        self._generation += 1
        activity, self._activity = self._activity, None
        if activity is not None and not activity.done():
            activity.cancel()
            await asyncio.wait([activity])

    def _begin(self, group: asyncio.TaskGroup) -> None:
        kind = ACTIVITY[self._progress.state]
        if kind is not Activity.NOTHING and self._activity is None:
            self._activity = group.create_task(self._act(kind, self._generation, self._progress))

    async def _act(self, kind: Activity, generation: int, progress: Progress) -> None:
        is_return = kind is Activity.READ_BACK
        work = read_back(self._equipment, progress) if is_return else self._outcome_of(kind, generation, progress)
        self._post(generation, await work)

    async def _outcome_of(self, kind: Activity, generation: int, progress: Progress) -> Event:
        equipment, target, timing = self._equipment, progress.target, self._equipment.config.timing
        if kind is Activity.RECHECK or target is None:
            while True:
                await asyncio.sleep(timing.recheck_interval_s)
                self._post(generation, RecheckDue())
        match kind:
            case Activity.PREFLIGHT:
                return await self._preflight(progress)
            case Activity.STAGE:
                return await Staging(equipment, target, self._status.staged).run()
            case Activity.WAIT_FOR_GATE:
                return await Pause(equipment, target, progress, lambda event: self._post(generation, event)).run()
            case Activity.CLEAR:
                return await Clearance(
                    equipment,
                    target,
                    progress.attempt + 1,
                    lambda event: self._post(generation, event),
                    self._changed,
                ).run()
            case Activity.TRIAL:
                await equipment.power.step("trial")
                return await Trial(equipment, target, progress).run()
            case _:
                return await self._count_signoff(generation, progress)

    async def _count_signoff(self, generation: int, progress: Progress) -> Event:
        now = self._equipment.clock.now()
        if progress.awaiting_since is None:
            self._post(generation, SignoffBegan(now))
        await asyncio.sleep(remaining_s(progress, now, self._equipment.config.timing.signoff_maximum_s))
        return SignoffOverdue()

    async def _preflight(self, progress: Progress) -> Event:
        """The clock, then the local gates, in their fixed order."""
        equipment, target = self._equipment, progress.target
        if target is None:
            return RecheckDue()
        try:
            await self._trust_time(target)
        except GateError as error:
            return GateRefused(error.gate, str(error), error.observed, error.required)
        finding = await equipment.gates.refusal(target, Moment.PREFLIGHT)
        return await self._attested(target) if finding is None else GateRefused(*finding.words)

    async def _trust_time(self, target: Target) -> None:
        """Raise GateError (clock) unless the time is trusted; control's acknowledgement of a ping may confirm it."""
        equipment = self._equipment
        try:
            equipment.check_time()
        except GateError:
            authority = target.rules.health_authority
            await equipment.health.ping(target.wave_id, authority, equipment.record, equipment.facts())
            equipment.check_time()

    async def _attested(self, target: Target) -> Event:
        """Nothing is flashed over what should not have booted. Who cannot be asked now is asked again before ARM."""
        equipment = self._equipment
        if equipment.health.attests:
            authority = target.rules.health_authority
            said = await equipment.health.ping(target.wave_id, authority, equipment.record, equipment.facts())
            if said.end is PingEnd.REFUSED:
                return GateRefused(said.gate, said.detail, said.detail, "a quote that the authority accepts")
        return GatesPassed()


def _is_other_work(before: Progress, after: Progress) -> bool:
    """Whether the present activity no longer fits; a new generation of an order alone does not change the work."""
    if before.state is not after.state or (before.target is None) is not (after.target is None):
        return True
    if before.target is None or after.target is None or before.target is after.target:
        return False
    return replaced(before.target, order_generation=after.target.order_generation) != after.target
