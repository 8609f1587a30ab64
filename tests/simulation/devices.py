"""A device: board, slots and boot environment by the harness, everything that decides by the product.

The agent's loop (``device/agent.py``) is mirrored without tasks: one event at a time, progress durable before the
other effects of its step, one activity at a time, levels looked at again after every change. What an activity waits
for is an event of the world. Gates of the hardware pass, but for what a fault sets.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from device.agent import _is_other_work
from device.belief import Verifier
from device.bootenv import Boot, ResetReason, SlotName
from device.equipment import Equipment
from device.health import PingEnd, PingResult
from device.levels import events_of
from device.platform import BootRecord, SlotLabel
from device.progress import (
    Arm,
    CommitBoot,
    CommitRead,
    Disarm,
    GateRefused,
    GatesPassed,
    KeepTrying,
    Persist,
    Reboot,
    RecheckDue,
    ReturnRefused,
    ReturnVerified,
    Revert,
    SignoffBegan,
    SignoffOverdue,
    Started,
)
from device.signoff import remaining_s
from device.sink import DeviceSink
from device.state import Document
from device.status import StatusReporter
from device.store import DeviceStore
from device.update import ACTIVITY, Activity, advance
from tests.simulation.activities import Answered, Clear, InTrial, Stage
from tests.simulation.board import CONFIG, Authorities, BootControl, Gates, Log, Slots, Tracing
from tests.simulation.disk import DeviceFile
from tests.simulation.engine import EPOCH, Node
from tests.simulation.links import HEARTBEAT_S, Dialer, node_at
from tests.simulation.words import MINT, encode
from wavemesh.errors import GateError, LocalError, PeerError
from wavemesh.session.upstream import SessionUpstream, UpstreamOptions
from wavemesh.trust.freshness import ClockSource
from wavemesh.trust.statements import HealthPing, UpdateState

if TYPE_CHECKING:
    from device.progress import Event, Progress
    from tests.simulation.engine import World
    from tests.simulation.hubs import StoreHub
    from tests.simulation.links import Link
    from wavemesh.trust.releases import ReleaseManifest

BOOT_S, AGENT_S, WATCHDOG_S = 25.0, 2.0, 120.0
PING_TIMEOUT_S = 10.0


_BEFORE_ARM = frozenset({UpdateState.PREFLIGHT, UpdateState.STAGING, UpdateState.PAUSED, UpdateState.VERIFIED})
_OPTIONS = UpstreamOptions()


class DeviceNode(Node):
    """One device: ``release`` quality is the world's, by firmware digest."""

    def __init__(self, world: World, path: str, base: ReleaseManifest, hardware: int) -> None:
        super().__init__(world, path)
        self.id = node_at(path)
        self.hardware = hardware
        self.file = DeviceFile(Document(MINT.name(), clock_floor=EPOCH))
        firmware = base.firmware
        assert firmware is not None
        self.slots = Slots({SlotName.A: SlotLabel(base.name, base.version, firmware.digest), SlotName.B: None})
        self.control = BootControl(Boot(SlotName.A, 0))
        self.configs = {0: SimpleNamespace(version="1.0.0", sha256="c0")}
        self.gates = Gates()
        self.link: Link
        self.dialer: Dialer
        self.upstream: SessionUpstream
        self.record = BootRecord("", Boot(SlotName.A, 0), ResetReason.POWER_ON)
        self.reason = ResetReason.POWER_ON
        self.is_powered = False
        self.is_dead = False
        self.boots = 0
        self.equipment: Equipment
        self.progress: Progress
        self._events: deque[tuple[int | None, Event]] = deque()
        self._levels = self._is_due = False
        self._generation = 0
        self._activity: Any = None
        self._staging_left_s = 0.0
        self._staging_since: float | None = None

    # -- the board --------------------------------------------------------------------------------------------------

    def power_on(self, reason: ResetReason = ResetReason.POWER_ON) -> None:
        """Start the board."""
        if self.is_powered or self.is_dead:
            return
        self.is_powered = True
        self._boot(reason)

    def power_cut(self, back_after_s: float | None) -> None:
        """The power fails; nobody hears of it."""
        if not self.is_powered:
            return
        self.note("power-cut")
        self._end(is_silent=True)
        self.is_powered = False
        if back_after_s is not None:
            self.world.after(back_after_s, self.power_on, ResetReason.POWER_LOSS)

    def _boot(self, reason: ResetReason) -> None:
        """What the firmware does: ``device/firmware.py``."""
        self.life += 1
        environment = self.control.environment
        if environment.trial is None:
            boot = environment.active
        elif environment.trial.tries_left > 0:
            boot = environment.trial.boot
            self.control.write(environment.attempt())
        else:
            boot = environment.active
            self.control.write(environment.fall_back(reason))
        self.boots += 1
        self.record = BootRecord(f"{self.label}-boot-{self.boots}", boot, reason)
        self.note("boots", f"{boot.slot.value} after {reason.value}")
        self.world.facts.booted(self)
        if self.world.facts.quality(self).starts_agent:
            self.later(BOOT_S, self.start)
        else:
            self.later(WATCHDOG_S, self._reset, ResetReason.WATCHDOG)

    def _reset(self, reason: ResetReason) -> None:
        self._end(is_silent=False)
        self._boot(reason)

    def _end(self, *, is_silent: bool) -> None:
        """The agent's process is gone."""
        if self.is_up:
            self.is_up = False
            self.crash_in = None
            stream = self.link.stream
            if stream is not None and stream.child is self:
                stream.child_died(is_silent=is_silent)
        self.life += 1
        self._events.clear()
        self._activity = None
        self._staging_since = None
        self._is_due = False

    def crashed(self) -> None:
        """The agent died; its supervisor starts it again in the same boot."""
        self._end(is_silent=False)
        self.later(AGENT_S, self.start)

    # -- the agent --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """The agent starts: its state follows from the boot and the environment."""
        if self.is_up or not self.is_powered:
            return
        self.is_up = True
        self.file.node = self
        log: Any = Log()
        tracing: Any = Tracing()
        file: Any = self.file
        credentials: Any = SimpleNamespace(node_id=self.id, authorities=Authorities())
        store = DeviceStore(file, credentials, self.clock, log, tracing)
        sink = DeviceSink(
            store=store,
            verifier=Verifier(b"", credentials),
            clock=self.clock,
            log=log,
            source=ClockSource.HARDWARE,
            changed=self.poke,
        )
        self.upstream = SessionUpstream(
            credentials=credentials,
            parent=node_at(self.link.parent.path),
            address="",
            log=store,
            sink=sink,
            clock=self.clock,
            rng=self.rng,
            software_version="agent/1",
            options=_OPTIONS,
            breached=lambda subject, gate, why: self.note("breach", f"{subject} {gate} {why}"),
        )
        self.dialer = Dialer(self, self.upstream, self.link)
        parts: dict[str, Any] = {
            "directory": Path("/simulated"),
            "power": None,
            "lkg": SimpleNamespace(held=lambda: None),
            "probes": None,
            "health": None,
            "artifacts": None,
            "configs": SimpleNamespace(generations=lambda: self.configs),
        }
        self.equipment = Equipment(
            node_id=self.id,
            config=CONFIG,
            clock=self.clock,
            log=log,
            store=store,
            sink=sink,
            slots=self.slots,  # type: ignore[arg-type]  # what the rules look at
            boot_control=self.control,  # type: ignore[arg-type]
            gates=self.gates,  # type: ignore[arg-type]
            record=self.record,
            tracing=tracing,
            **parts,
        )
        self.status = StatusReporter(self.equipment, self.upstream, "agent/1")
        self.progress = store.document.progress
        self._levels = True
        self.run(self._begin_life)

    def _begin_life(self) -> None:
        self._handle(Started(self.record, self.control.environment, self.world.now))
        self._begin()
        self.dialer.knock()
        self._wake()

    def poke(self) -> None:
        """What is held changed, or something that an activity waits for."""
        if self.world.facts.words is not None and hasattr(self, "equipment"):
            self.world.facts.words.heard(self)
        self._levels = True
        if isinstance(self._activity, Clear):
            self._activity.look_soon()
        elif isinstance(self._activity, Stage):
            self._activity.look()
        self._wake()

    def _wake(self) -> None:
        if not self._is_due and self.is_up:
            self._is_due = True
            self.later(0.0, self._work)

    def _work(self) -> None:
        self._is_due = False
        while self.is_up and (self._levels or self._events):
            if self._levels:
                self._levels = False
                for event in events_of(self.equipment, self.progress):
                    self._handle(event)
                self._expect_expiry()
                self._expect_heartbeat()
                continue
            generation, event = self._events.popleft()
            if generation in {None, self._generation}:
                self._handle(event)

    def _expect_expiry(self) -> None:
        """Orders expire without anybody saying so."""
        target = self.progress.target
        if target is not None and self.progress.state in _BEFORE_ARM:
            ahead = (target.expires_at - self.clock.now()).total_seconds()
            if ahead > 0:
                self.later(ahead + 1.0, self.poke)

    def _expect_heartbeat(self) -> None:
        """What was appended without waking the session goes up when that wakes next, for a heartbeat."""
        stream = self.dialer.stream
        if stream is not None and self.file.document.next_number > stream.machine._next_number:
            self.later(HEARTBEAT_S, stream.wake_child)

    def post(self, event: Event, generation: int | None = None) -> None:
        """Queue an event; one of an activity counts while that is the present one."""
        self._events.append((self._generation if generation is None else generation, event))
        self._wake()

    def _handle(self, event: Event) -> None:
        before = self.progress
        step = advance(before, event)
        self.progress = step.progress
        other_work = _is_other_work(before, step.progress)
        if other_work:
            self._generation += 1
            self._activity = None
            self._staging_since = None
            if self.world.is_traced:
                self.note(
                    f"{before.state.name} -> {step.progress.state.name}",
                    f"attempt {step.progress.attempt} {step.progress.gate} by {type(event).__name__}",
                )
        life = self.life
        for effect in step.effects:
            self._perform(effect)
            if self.life != life:
                return
        if not step.effects:
            self.status.show(self.progress)
        if other_work:
            self._begin()
            self._levels = True

    def _perform(self, effect: Any) -> None:
        if self.crash_in is not None:
            self.step(type(effect).__name__)
        control, facts = self.control, self.world.facts
        match effect:
            case Persist():
                self._persist(effect)
            case Arm(boot):
                control.write(control.environment.arm(boot))
                facts.armed(self)
            case Disarm():
                if control.environment.trial is not None:
                    control.write(control.environment.disarm())
            case KeepTrying():
                control.write(control.environment.keep_trying(3))
            case CommitBoot():
                control.write(control.environment.commit())
                self.post(CommitRead(control.environment))
            case Revert():
                control.write(control.environment.revert())
                self.post(CommitRead(control.environment))
            case Reboot():
                self._reset(ResetReason.REBOOT)

    def _persist(self, words: Persist) -> None:
        try:
            grew = self.equipment.store.persist(self.progress, words, self.record.boot_id, self.equipment.facts())
        except LocalError as error:
            # A rollback never waits for the disk; anything else ends the process, as in the product.
            if self.progress.state is not UpdateState.ROLLING_BACK:
                self.note("crash", f"{error}")
                self.crashed()
                return
            grew = False
        else:
            if self.world.facts.words is not None:
                self.world.facts.words.said(self, words.outcome)
        self.world.facts.persisted(self, words)
        if grew:
            self.status.wake()
        self.status.show(self.progress)

    # -- activities -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._activity is not None or not self.is_up:
            return
        kind = ACTIVITY[self.progress.state]
        if self.progress.target is None and kind not in {Activity.NOTHING, Activity.READ_BACK}:
            kind = Activity.RECHECK
        self._activity = kind
        match kind:
            case Activity.PREFLIGHT:
                self._in(1.0, self._preflight)
            case Activity.STAGE:
                self._activity = Stage(self)
            case Activity.CLEAR:
                self._activity = Clear(self)
            case Activity.TRIAL:
                self._activity = InTrial(self)
            case Activity.READ_BACK:
                self._in(15.0, self._read_back)
            case Activity.RECHECK:
                self._in(CONFIG.timing.recheck_interval_s, self._recheck)
            case Activity.COUNT_SIGNOFF:
                self._count_signoff()

    def _in(self, delay: float, action: Any) -> None:
        """Do something in a while, if the activity is still the present one."""
        self.later(delay, self._if_present, self._generation, action)

    def _if_present(self, generation: int, action: Any) -> None:
        if generation == self._generation:
            action()

    def _preflight(self) -> None:
        try:
            self.equipment.check_time()
        except GateError as error:
            self.post(GateRefused(error.gate, str(error)))
            return
        closed = self.gates.closed
        self.post(GatesPassed() if closed is None else GateRefused(*closed.words))

    def _recheck(self) -> None:
        self.post(RecheckDue())
        self._levels = True
        self._in(CONFIG.timing.recheck_interval_s, self._recheck)

    def _read_back(self) -> None:
        boot, environment = self.progress.return_to, self.control.environment
        if boot is None or boot == self.record.boot:
            return
        whole = self.slots.label(boot.slot) is not None and boot == environment.previous
        self.post(ReturnVerified() if whole else ReturnRefused("not there", environment))

    def _count_signoff(self) -> None:
        now = self.clock.now()
        if self.progress.awaiting_since is None:
            self.post(SignoffBegan(now))
        left = remaining_s(self.progress, now, CONFIG.timing.signoff_maximum_s)
        self._in(left, lambda: self.post(SignoffOverdue()))

    # -- health -----------------------------------------------------------------------------------------------------

    def ping(self, heard: Any) -> None:
        """Ping the policy's authority once: ``device/health.py`` with the signatures left out."""
        assert self.progress.target is not None
        ping = HealthPing(
            self.progress.wave_id,
            self.path,
            self.record.boot_id,
            self.record.boot.slot.value,
            "",
            self.equipment.store.next_ping(),
            self.progress.target.rules.health_authority,
        )
        answered = Answered(self, heard)
        stream = self.dialer.stream
        try:
            if stream is None or not self.dialer.is_open:
                raise PeerError("no session with the hub")
            stream.ask("health-ping", encode(ping), answered.answered)
        except PeerError as error:
            nothing = PingResult(PingEnd.NOTHING, detail=str(error))
            self._in(1.0, lambda: answered.end(nothing))
        else:
            self._in(PING_TIMEOUT_S, lambda: answered.end(PingResult(PingEnd.NOTHING, detail="no answer")))

    @property
    def hub(self) -> StoreHub:
        return self.link.parent  # type: ignore[return-value]
