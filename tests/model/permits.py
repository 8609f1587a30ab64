"""Control, one store hub and two devices over the product's permits, leases and update machine.

``control.permits`` and ``control.ledger`` decide what control does, ``storehub.swaps`` what the hub does and
``device.update`` what a device does. Sessions are taken for what ``session.py`` finds them to be: what is desired
arrives, late or never; reports arrive once and in order; a hub restored from an older disk is fenced if it had said
more than it knows. So one step brings one side up to date with the other, at any moment.

The clock is coarse: a lease lasts one tick, and lease, trial and watchdog maxima together two. A device that runs ends
its swap within the maxima, as its own watchdog sees to; one without power may stay away for any time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Self

from control import permits
from control.ledger import HaltRule, Move, Outcome, is_final, merge
from control.ledger import decide as decide_wave
from control.permits import Issue, StoreShare
from device.bootenv import ResetReason
from storehub import swaps
from storehub.swaps import DeviceView, HubView, PermitView, SlotUse, WaveView, Word
from tests.model.explorer import BrokenError, Problem, Step
from tests.model.swapping import BEGAN, FOREVER, TICK_S, WAVE, Device, Grant, at
from wavemesh.trust.statements import Permit, UpdateState, WaveState

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from device.progress import Event

from tests.model.wave import (
    ATTEMPTS,
    BATCH,
    EXPOSED,
    LIMIT,
    MAXIMA_TICKS,
    NEVER,
    ONE_SWAP,
    SETTLED,
    TIMING,
    WRITTEN_OFF,
    Control,
    Hub,
    PermitPlot,
)


@dataclass(slots=True)
class PermitWorld:
    """All nodes; everything in it is a value."""

    plot: PermitPlot
    control: Control
    hubs: dict[str, Hub]
    devices: dict[str, Device]
    tick: int = 0
    faults: int = 0
    incarnations: int = 1
    hub_backup: Hub | None = None
    control_backup: Control | None = None

    @classmethod
    def of(cls, plot: PermitPlot) -> PermitWorld:
        """Both devices are VERIFIED; control knows the hub by its first incarnation."""
        seen = tuple((name, UpdateState.VERIFIED, 1, 0) for name in plot.devices)
        devices = {name: Device(name) for name in plot.devices}
        world = cls(plot, Control(bound="i0"), {"hub": Hub(seen=seen)}, devices)
        world.settle()
        return world

    def copy(self) -> Self:
        """An independent world."""
        rest = (self.tick, self.faults, self.incarnations, self.hub_backup, self.control_backup)
        return type(self)(self.plot, self.control, dict(self.hubs), dict(self.devices), *rest)

    def key(self) -> Hashable:
        """All of it."""
        rest = (self.tick, self.faults, self.incarnations, self.hub_backup, self.control_backup)
        return (self.control, tuple(self.hubs.values()), tuple(self.devices.values()), rest)

    # -- what may happen ---------------------------------------------------------------------------------------------

    def steps(self) -> Iterator[Step[PermitWorld]]:
        """What may happen."""
        if self.plot.halts and self.control.state is WaveState.RUNNING:
            yield Step("an operator halts the wave", PermitWorld._halt)
        for name in self.hubs:
            yield Step(f"{name} hears control", partial(PermitWorld._hub_hears, name=name))
            yield Step(f"{name} shows its incarnation", partial(PermitWorld._hub_shows, name=name))
            yield Step(f"{name} reports", partial(PermitWorld._hub_reports, name=name))
            yield Step(f"{name} decides", partial(PermitWorld._hub_decides, name=name))
        for name, device in self.devices.items():
            yield from self._steps_of(name, device)
        if self.tick < self.plot.ticks and not any(self._is_bound_to_end(d) for d in self.devices.values()):
            yield Step("time passes", PermitWorld._tick)
        if not self.faults:
            yield from self._faults()

    def _steps_of(self, name: str, device: Device) -> Iterator[Step[PermitWorld]]:
        if device.ended is not None:
            yield Step(f"{name} starts", lambda w: w._go_on(w.devices[name].starts()))
            return
        if device.todo:
            yield Step(f"{name} does {type(device.todo[0]).__name__}", lambda w: w._set(w.devices[name].does(w.tick)))
            return
        if not device.hub:
            for hub in self.hubs:
                yield Step(f"{name} connects to {hub}", partial(PermitWorld._connect, name=name, hub=hub))
        else:
            yield Step(f"{name} tells {device.hub}", partial(PermitWorld._tell, name=name))
            yield Step(f"{name} hears {device.hub}", partial(PermitWorld._device_hears, name=name))
        if device.may_clear(self.tick):
            yield Step(f"{name} is cleared", partial(PermitWorld._clear, name=name))
        if device.progress.state is UpdateState.TRIAL:
            for label, event in device.tries(self.tick):
                yield Step(f"{name} {label}", partial(PermitWorld._hear, name=name, event=event))

    def _faults(self) -> Iterator[Step[PermitWorld]]:
        kinds = self.plot.faults
        for name, device in self.devices.items():
            if "power" in kinds and device.ended is None:
                yield Step(f"{name} loses power", partial(PermitWorld._cut_power, name=name), is_fault=True)
        if "hub" in kinds:
            yield Step("the hub crashes", PermitWorld._crash_hub, is_fault=True)
        if "clone-hub" in kinds:
            yield Step("the hub is cloned", PermitWorld._clone_hub, is_fault=True)
        if "restore-hub" in kinds:
            if self.hub_backup is None:
                yield Step("the hub is backed up", PermitWorld._back_up_hub)
            else:
                yield Step("the hub is restored", PermitWorld._restore_hub, is_fault=True)
        if "restore-control" in kinds:
            if self.control_backup is None:
                yield Step("control is backed up", PermitWorld._back_up_control)
            else:
                yield Step("control is restored", PermitWorld._restore_control, is_fault=True)

    def _is_bound_to_end(self, device: Device) -> bool:
        """Whether it acts just now, or the maxima of its swap would be over with the next tick although it runs."""
        expires_at = device.disk.lease_expires_at
        if device.todo:
            return True
        if not device.is_inside or device.ended is ResetReason.POWER_LOSS or expires_at is None:
            return False
        return at(self.tick + 1) >= expires_at + (at(MAXIMA_TICKS) - at(1))

    # -- what must hold ----------------------------------------------------------------------------------------------

    @property
    def is_hub_old(self) -> bool:
        """Whether a hub may act on an older state, or two on one."""
        return bool(self.faults) and bool({"restore-hub", "clone-hub"} & self.plot.faults)

    def problems(self) -> Iterator[Problem]:
        """Safety."""
        outstanding = set(permits.outstanding(self.share()))
        inside = [d.name for d in self.devices.values() if d.is_inside and not self._is_overdue(d)]
        if len(inside) > LIMIT and not self.is_hub_old:
            yield Problem(ONE_SWAP, f"{inside} at once")
        if "restore-control" not in self.plot.faults or not self.faults:
            written_off = {device for device, issue in self.control.issues if issue.written_off}
            loose = self._can_arm() - outstanding - (written_off if self.is_hub_old else set())
            if loose and self.control.state is WaveState.RUNNING:
                yield Problem(EXPOSED, f"{sorted(loose)} can ARM, outstanding are {sorted(outstanding)}")

    def _is_overdue(self, device: Device) -> bool:
        """Whether it was away beyond its maxima, so that its slot is free; what it comes back to is no trial."""
        expires_at = device.disk.lease_expires_at
        return expires_at is not None and at(self.tick) >= expires_at + (at(MAXIMA_TICKS) - at(1))

    def _can_arm(self) -> set[str]:
        """Devices that some hub could let ARM now, or that hold a live lease."""
        found = set()
        for hub in self.hubs.values():
            words = dict(hub.words)
            found |= {
                device
                for device, permit in hub.permits
                if permit.hub_incarnation == hub.incarnation
                and not self.devices[device].is_done
                and self.devices[device].disk.attempt < permit.attempts
                and not is_final(_by_device(words.get(device)), ATTEMPTS)
            }
        return found | {d.name for d in self.devices.values() if d.may_clear(self.tick)}

    def problems_at_rest(self) -> Iterator[Problem]:
        """What must have come about."""
        outcomes = dict(self.control.outcomes)
        for name, device in self.devices.items():
            known = outcomes.get(name)
            if device.untold:
                yield Problem(SETTLED, f"{name} still has words to tell")
            if device.is_inside:
                yield Problem(SETTLED, f"{name} is still inside a swap")
            ran = {UpdateState.COMMITTED: "UPDATED", UpdateState.ROLLED_BACK: "ROLLED_BACK"}.get(device.disk.state)
            if ran == "UPDATED" and (known is None or known.kind.name != ran):
                yield Problem(SETTLED, f"{name} is updated, control has {known}")

    # -- control -----------------------------------------------------------------------------------------------------

    def share(self) -> StoreShare:
        """The store's share of the wave."""
        control = self.control
        return StoreShare(self.plot.devices, dict(control.issues), dict(control.outcomes), ATTEMPTS)

    def settle(self) -> None:
        """As ``control/waves.py`` settles a wave after each change."""
        control = self.control
        decision = decide_wave(
            state=control.state,
            targets=self.plot.devices,
            outcomes=dict(control.outcomes),
            attempts=ATTEMPTS,
            rule=HaltRule(NEVER, 99),
            expires_at=FOREVER,
            now=at(self.tick),
        )
        if decision.move is Move.CLOSE:
            self.control = replace(control, state=WaveState.CLOSED)
        elif control.state is WaveState.RUNNING:
            self._issue()

    def _issue(self) -> None:
        issues, bound = dict(self.control.issues), self.control.bound
        outcomes = dict(self.control.outcomes)
        for device in permits.to_issue(self.share(), hub_incarnation=bound, batch=self.plot.batch):
            last = issues.get(device)
            if last is not None and last.hub_incarnation != bound and not last.written_off:
                raise BrokenError(
                    WRITTEN_OFF, f"{device} for {bound}, the one of {last.hub_incarnation} is outstanding"
                )
            issues[device] = Issue(device, last.generation + 1 if last else 1, bound)
            live = [
                d for d, issue in issues.items() if not issue.written_off and not is_final(outcomes.get(d), ATTEMPTS)
            ]
            if self.plot.batch is not None and len(live) > self.plot.batch:
                raise BrokenError(BATCH, f"{live} with a batch of {self.plot.batch}")
        self.control = replace(self.control, issues=tuple(sorted(issues.items())))

    def _halt(self) -> None:
        outstanding = frozenset(permits.outstanding(self.share()))
        self.control = replace(self.control, state=WaveState.HALTED, exposed_at_halt=outstanding)

    def _published(self) -> tuple[tuple[str, Permit], ...]:
        """Control's desired permits."""
        if self.control.state is not WaveState.RUNNING:
            return ()
        return tuple(
            (device, Permit(WAVE, device, ATTEMPTS, issue.generation, None, BEGAN, FOREVER, issue.hub_incarnation))
            for device, issue in self.control.issues
        )

    # -- the hub -----------------------------------------------------------------------------------------------------

    def _is_fenced(self, name: str) -> bool:
        """Greet control; a hub that has other reports acknowledged than control knows starts anew with a snapshot."""
        hub = self.hubs[name]
        if dict(self.control.cursors).get(hub.incarnation, 0) == hub.sent:
            return False
        incarnation = f"i{self.incarnations}"
        self.incarnations += 1
        self.hubs[name] = replace(hub, incarnation=incarnation, since=self.tick, log=("snapshot",), sent=0)
        return True

    def _hub_hears(self, *, name: str) -> None:
        if self._is_fenced(name):
            return
        self.hubs[name] = replace(self.hubs[name], permits=self._published(), order=self.control.state)

    def _hub_shows(self, *, name: str) -> None:
        if self.hubs[name].shown == self.plot.shows or self._is_fenced(name):
            return
        if len(self.hubs) > 1:
            self.hubs[name] = replace(self.hubs[name], shown=self.hubs[name].shown + 1)
        self.control = replace(self.control, bound=self.hubs[name].incarnation)
        self.settle()

    def _hub_reports(self, *, name: str) -> None:
        if self._is_fenced(name) or not self.hubs[name].log:
            return
        hub, control = self.hubs[name], self.control
        for report in hub.log:
            if isinstance(report, Outcome):
                control = replace(control, outcomes=_merged(control.outcomes, report))
                continue
            control = replace(control, outcomes=_merged(control.outcomes, *dict(hub.words).values()))
            self.control = control
            control = replace(self.write_off(hub.incarnation), bound=hub.incarnation)
        sent = hub.sent + len(hub.log)
        cursors = {**dict(control.cursors), hub.incarnation: sent}
        self.control = replace(control, cursors=tuple(sorted(cursors.items())))
        self.hubs[name] = replace(hub, log=(), sent=sent)
        self.settle()

    def write_off(self, incarnation: str) -> Control:
        """On a snapshot what an earlier incarnation had outstanding counts as spent."""
        issues = dict(self.control.issues)
        for device in permits.to_write_off(self.share(), incarnation):
            issues[device] = replace(issues[device], written_off=True)
        return replace(self.control, issues=tuple(sorted(issues.items())))

    def view(self, name: str) -> HubView:
        """What the hub's scheduler looks at."""
        hub, present = self.hubs[name], dict(self.hubs[name].present)
        devices = {
            device: DeviceView(
                device,
                state,
                WAVE,
                attempt,
                at(seen),
                at(seen),
                at(0) if device in present else None,
                present.get(device, False),
            )
            for device, state, attempt, seen in hub.seen
        }
        wave = WaveView(WAVE, hub.order is WaveState.RUNNING, frozenset(self.plot.devices), FOREVER, LIMIT, TICK_S / 2)
        return HubView(
            now=at(self.tick),
            timing=TIMING,
            incarnation=hub.incarnation,
            incarnation_since=at(hub.since),
            default_limit=LIMIT,
            waves=(wave,),
            devices=devices,
            permits={(WAVE, d): PermitView(p.attempts, p.expires_at, p.hub_incarnation) for d, p in hub.permits},
            slots={slot.device: slot for slot in hub.slots},
            words={(WAVE, d): Word(o.kind, o.attempt, o.sequence, o.by_device, BEGAN, o.gate) for d, o in hub.words},
        )

    def _hub_decides(self, *, name: str) -> None:
        """One pass of the scheduler, in one transaction."""
        hub = self.hubs[name]
        decision = swaps.decide(self.view(name))
        slots = {slot.device: slot for slot in hub.slots}
        grants, words, log = dict(hub.grants), hub.words, hub.log
        for slot in decision.ended:
            del slots[slot.device]
            grants.pop(slot.device, None)
        for said in decision.inferred:
            word = Outcome(said.device, said.attempt, said.sequence, said.kind, said.gate, by_device=False)
            words, log = _merged(words, word), (*log, word)
        for slot in decision.granted:
            assert slot.use is SlotUse.SWAP
            slots[slot.device] = slot
            grants[slot.device] = Grant(slot.attempt, dict(hub.permits)[slot.device], self.tick + 1)
        self.hubs[name] = replace(
            hub,
            slots=tuple(sorted(slots.values(), key=lambda s: s.device)),
            grants=tuple(sorted(grants.items())),
            words=words,
            log=log,
        )

    # -- the devices -------------------------------------------------------------------------------------------------

    def _set(self, device: Device) -> None:
        self.devices[device.name] = device

    def _connect(self, *, name: str, hub: str) -> None:
        """A hub that knows less than this device told before is told again (a log that restarts, ADR 2)."""
        device = self.devices[name]
        known = dict(self.hubs[hub].words).get(name)
        last = device.last
        if last is not None and not device.untold and (known is None or known.rank < last.rank):
            device = replace(device, untold=(last,))
        self.devices[name] = replace(device, hub=hub)
        for one, held in self.hubs.items():
            present = {**dict(held.present)}
            present.pop(name, None)
            if one == hub:
                present[name] = False
            self.hubs[one] = replace(held, present=tuple(sorted(present.items())))

    def _tell(self, *, name: str) -> None:
        """Its words, then its status, as a session sends them."""
        device, hub = self.devices[name], self.hubs[self.devices[name].hub]
        words, log = hub.words, hub.log
        for word in device.untold:
            merged = _merged(words, word)
            log = (*log, word) if merged != words else log
            words = merged
        state, attempt = device.asks
        told = {one[0]: one[1:] for one in hub.seen}
        if told[name][:2] != (state, attempt) or not dict(hub.present)[name]:
            told[name] = (state, attempt, self.tick)
        seen = tuple((one, *rest) for one, rest in sorted(told.items()))
        present = tuple(sorted({**dict(hub.present), name: True}.items()))
        self.hubs[device.hub] = replace(hub, words=words, log=log, seen=seen, present=present)
        self.devices[name] = replace(device, untold=())

    def _device_hears(self, *, name: str) -> None:
        """The lease that its hub serves it, and whether the wave is halted."""
        device, hub = self.devices[name], self.hubs[self.devices[name].hub]
        grant = dict(hub.grants).get(name)
        device = replace(device, grant=grant if hub.order is WaveState.RUNNING or device.is_inside else None)
        is_news = hub.order is WaveState.HALTED and not device.knows_halt
        self._go_on(device.is_told_of_halt() if is_news else device)

    def _go_on(self, device: Device) -> None:
        """Do its effects at once: between two nothing can be told from outside, but that the power may go."""
        may_stop = "power" in self.plot.faults and not self.faults
        while device.todo and not may_stop:
            device = device.does(self.tick)
        self._set(device)

    def _hear(self, *, name: str, event: Event) -> None:
        self._go_on(self.devices[name].hears(event))

    def _clear(self, *, name: str) -> None:
        exposed = self.control.exposed_at_halt
        if exposed is not None and name not in exposed:
            raise BrokenError(EXPOSED, f"{name} ARMs after the halt, outstanding were {sorted(exposed)}")
        self._go_on(self.devices[name].clears())

    def _tick(self) -> None:
        self.tick += 1

    # -- faults ------------------------------------------------------------------------------------------------------

    def _cut_power(self, *, name: str) -> None:
        self.faults += 1
        self._set(self.devices[name].stops(ResetReason.POWER_LOSS))

    def _crash_hub(self) -> None:
        self.faults += 1
        self._drop_sessions()

    def _drop_sessions(self) -> None:
        self.hubs["hub"] = replace(self.hubs["hub"], present=())
        self.devices = {name: replace(device, hub="") for name, device in self.devices.items()}

    def _clone_hub(self) -> None:
        self.faults += 1
        self.hubs["clone"] = replace(self.hubs["hub"], present=())

    def _back_up_hub(self) -> None:
        self.hub_backup = self.hubs["hub"]

    def _restore_hub(self) -> None:
        assert self.hub_backup is not None
        self.faults += 1
        self.hubs["hub"], self.hub_backup = self.hub_backup, None  # nobody reads it again: faults are single
        self._drop_sessions()

    def _back_up_control(self) -> None:
        self.control_backup = self.control

    def _restore_control(self) -> None:
        assert self.control_backup is not None
        self.faults += 1
        self.control, self.control_backup = self.control_backup, None  # as a hub's


def _merged(held: tuple[tuple[str, Outcome], ...], *incoming: Outcome) -> tuple[tuple[str, Outcome], ...]:
    return tuple(sorted(merge(dict(held), incoming).items()))


def _by_device(outcome: Outcome | None) -> Outcome | None:
    return outcome if outcome is not None and outcome.by_device else None
