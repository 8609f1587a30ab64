"""Decides who may be inside a swap, and what is said of those who were and are not heard.

A *slot* is one device's place inside a swap, from the grant of its lease to its outcome. The limit is the strictest
``maxConcurrentSwaps`` of the waves that run here. The rules, and why:

1. A device occupies a slot from the moment its lease is *persisted*, whatever becomes of the message that carries it:
   a lease that left the hub may be used at any moment until it expires, and the trial that follows takes its time.
2. A slot ends by the device's word alone: an outcome of that attempt after a burn, a refusal by a gate that stands for
   the wave, a status about a later attempt, or a status outside any swap that the device dated after the lease's expiry
   (by the very clock that forbids it to ARM from then on). Otherwise it ends at ``until`` = lease + trial + watchdog
   maxima. Hence a slot that looks free *is* free, across crashes of either side.
3. Occupancy counts devices, not leases: a device whose lease lapsed may get a fresh one without a second slot. A device
   that says it is inside a swap of which the hub knows nothing (restored disk, rollback by hand) occupies one as well,
   until its outcome is known or its status is older than the maxima.
4. After a new incarnation nothing is granted until every target device has said where it is, or the maxima have passed.
   After any other start the disk may be an older one as well, which nobody has noticed yet, and leases of which it
   knows nothing may be out: a target device that has not said since then where it is, and whose outcome is open, counts
   as inside a swap until it does or the maxima have passed.
5. At ``until`` without a word: inside a swap by its own last status and heard → FAILED; not heard while there is a
   witness (``witnesses.py``) → SILENT; without one → UNKNOWN, which turns SILENT when there is one.
6. Inferred outcomes take a sequence that any later word of the device ties or beats, and a device's word wins ties.
7. Rollbacks an operator asked for go before grants, and within the same limit; a sign-off waits for nothing. A
   rehearsal swaps nothing and takes no slot.
8. What availability groups allow, ``availability.py`` decides; whom one holds up is told, with the reason.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING

from storehub.availability import NOT_ARMED, Roster
from storehub.witnesses import has_witness
from wavemesh.policy.gates import BadGateError, parse_gate
from wavemesh.trust.statements import OutcomeKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

IN_SWAP = frozenset(
    {
        UpdateState.ARMED,
        UpdateState.TRIAL,
        UpdateState.COMMITTING,
        UpdateState.ROLLING_BACK,
        UpdateState.AWAITING_SIGNOFF,
    }
)
"""States in which a device is inside a swap by its own word."""

_AFTER_BURN = frozenset({OutcomeKind.UPDATED, OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED, OutcomeKind.INCONCLUSIVE})
_THROUGH = frozenset({OutcomeKind.UPDATED, OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED})
_ASKS_AGAIN = frozenset(
    {OutcomeKind.PENDING, OutcomeKind.REFUSED, OutcomeKind.INCONCLUSIVE, OutcomeKind.UNKNOWN, OutcomeKind.SILENT}
)
"""Kinds after which a device of the wave may still be leased; SILENT and UNKNOWN only yield to its own return."""


class SlotUse(enum.Enum):
    """Why a device occupies a slot."""

    SWAP = "swap"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Slot:
    """One device's place inside a swap; no ARM after ``expires_at``, free at ``until`` without a word."""

    device: str
    wave_id: str
    use: SlotUse
    attempt: int
    granted_at: datetime
    expires_at: datetime
    until: datetime


@dataclass(frozen=True, slots=True)
class DeviceView:
    """What the hub knows of a device: its last status, by whose clock, and since when its session is open.

    ``left_at`` is when its last session ended, as far as this process saw it.
    """

    path: str
    state: UpdateState
    wave_id: str
    attempt: int
    said_at: datetime
    seen_at: datetime
    connected_since: datetime | None
    heard_in_session: bool
    gate: str = ""
    left_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """The outcome in force of a device in a wave, and whether the device itself signed it."""

    kind: OutcomeKind
    attempt: int
    sequence: int
    by_device: bool
    received_at: datetime
    gate: str = ""

    @property
    def is_final_refusal(self) -> bool:
        """Whether the device refused by a gate that is not checked again within the wave; an unknown gate may be."""
        try:
            return self.kind is OutcomeKind.REFUSED and not parse_gate(self.gate).gate.is_transient
        except BadGateError:
            return False


@dataclass(frozen=True, slots=True)
class PermitView:
    """The part of a verified permit that counts here."""

    attempts: int
    expires_at: datetime
    hub_incarnation: str


@dataclass(frozen=True, slots=True)
class Group:
    """Devices of which at least ``min_up`` stay up, swapped one after the other.

    ``members`` is None where this store's configuration does not know the group; ``name`` is for people.
    """

    members: frozenset[str] | None
    min_up: int
    name: str = "its group"


@dataclass(frozen=True, slots=True)
class WaveView:
    """A wave as far as it concerns slots; ``leasable`` is the verdict of ``storehub/standing.py``."""

    wave_id: str
    leasable: bool
    devices: frozenset[str]
    expires_at: datetime
    max_concurrent_swaps: int
    trial_s: float
    groups: tuple[Group, ...] = ()


@dataclass(frozen=True, slots=True)
class RollbackWish:
    """A device rollback an operator asked for and the device has not been told of yet.

    A sign-off is for a device that is inside a swap already, however long ago its slot ran out. A rehearsal rolls
    nothing back: it is told to the device as soon as that is connected.
    """

    intent_id: str
    device: str
    wave_id: str
    is_signoff: bool = False
    is_rehearsal: bool = False


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things may take, seconds: ``watchdog_s`` is boot and watchdog together, beyond lease and trial."""

    lease_s: float
    watchdog_s: float
    witness_s: float


@dataclass(frozen=True, slots=True)
class HubView:
    """Everything one decision looks at; ``permits`` and ``words`` are keyed by (wave, device)."""

    now: datetime
    timing: Timing
    incarnation: str
    incarnation_since: datetime
    default_limit: int
    waves: Sequence[WaveView]
    devices: Mapping[str, DeviceView]
    permits: Mapping[tuple[str, str], PermitView]
    slots: Mapping[str, Slot]
    words: Mapping[tuple[str, str], Word]
    rollbacks: Sequence[RollbackWish] = ()
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """An outcome the hub signs because the device did not."""

    wave_id: str
    device: str
    attempt: int
    sequence: int
    kind: OutcomeKind
    gate: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Wait:
    """A device that its availability groups keep from a swap or a rollback for now, and for people why."""

    wave_id: str
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows, to be made durable in one transaction before any of it is sent.

    ``recalled`` are devices from which an unused lease is held back for now; ``waits`` are only shown, and so is who
    was ``inside`` a swap before it, as far as the hub can know.
    """

    ended: tuple[Slot, ...]
    inferred: tuple[Inference, ...]
    relayed: tuple[tuple[RollbackWish, Slot | None], ...]
    granted: tuple[Slot, ...]
    waits: tuple[Wait, ...] = field(default=(), compare=False)
    recalled: frozenset[str] = field(default=frozenset(), compare=False)
    inside: frozenset[str] = field(default=frozenset(), compare=False)


def decide(view: HubView) -> Decision:
    """Free what is free, say what must be said, relay rollbacks, and grant leases within the limits."""
    ended = tuple(slot for slot in view.slots.values() if _is_over(slot, view))
    gone = {slot.device for slot in ended}
    inferred = (*(i for slot in ended if (i := _judge(slot, view))), *_convictions(view))
    declared, live = _self_declared(view), view.slots.keys() - gone
    occupied, inside = live | (declared - gone), frozenset(live | declared)
    roster, waits = Roster(view, {one.device for one in inferred}), list[Wait]()
    relayed = _relay(view, occupied, roster, waits)
    swapping = {slot.device for _, slot in relayed if slot is not None}
    occupied |= swapping
    held = frozenset(live) | swapping
    granted = _grant(view, occupied | _unaccounted(view, gone), held, roster, waits)
    recalled = _recall(view, gone, occupied, roster)
    shown = (*recalled, *waits)
    return Decision(ended, inferred, relayed, granted, shown, frozenset(one.device for one in recalled), inside)


def _is_over(slot: Slot, view: HubView) -> bool:
    if view.now >= slot.until:
        return True
    device = view.devices.get(slot.device)
    if slot.use is SlotUse.ROLLBACK:
        told = any(
            d == slot.device and w.by_device and w.received_at > slot.granted_at for (_, d), w in view.words.items()
        )
        back = device is not None and device.state is UpdateState.ROLLED_BACK and device.seen_at > slot.granted_at
        return told or back
    if _has_spoken(slot, view):
        return True
    if device is None or device.seen_at <= slot.granted_at:
        return False
    if device.wave_id == slot.wave_id and device.attempt > slot.attempt:
        return device.state in NOT_ARMED
    return device.state in NOT_ARMED and device.said_at >= slot.expires_at


def _has_spoken(slot: Slot, view: HubView) -> bool:
    """Whether the device itself said what came of the slot: a burn of its attempt or of a later one, or a refusal."""
    word = view.words.get((slot.wave_id, slot.device))
    if word is None or not word.by_device:
        return False
    return word.is_final_refusal or (word.kind in _AFTER_BURN and word.attempt >= slot.attempt)


def _self_declared(view: HubView) -> set[str]:
    """Devices inside a swap by their own recent status, whose outcome is open."""
    recent = view.now - timedelta(seconds=_maxima_s(view))
    return {
        d.path for d in view.devices.values() if d.state in IN_SWAP and d.seen_at > recent and not _is_settled(view, d)
    }


def _unaccounted(view: HubView, gone: set[str]) -> set[str]:
    """Rule 4, after a start: devices that may be inside a swap by a lease that this disk does not know."""
    if view.started_at is None or view.now >= view.started_at + timedelta(seconds=_maxima_s(view)):
        return set()
    return {
        path
        for wave in view.waves
        for path in wave.devices
        if path not in gone
        and (wave.wave_id, path) in view.permits
        and not _has_said(view, path, view.started_at)
        and not _is_through(view.words.get((wave.wave_id, path)))
    }


def _is_through(word: Word | None) -> bool:
    """Whether the device itself said that it is through with the wave."""
    return word is not None and word.by_device and word.kind in _THROUGH


def _has_said(view: HubView, path: str, since: datetime) -> bool:
    """Whether the device has said where it is in this session, or since then."""
    device = view.devices.get(path)
    return device is not None and (device.heard_in_session or device.seen_at >= since)


def _is_settled(view: HubView, device: DeviceView) -> bool:
    """Whether the outcome of the swap that the device says it is in is known already."""
    word = view.words.get((device.wave_id, device.path))
    if word is None or word.attempt < device.attempt:
        return False
    if device.state is UpdateState.ROLLING_BACK:
        return word.kind in {OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED}
    return word.kind in _AFTER_BURN


def _maxima_s(view: HubView) -> float:
    longest = max((wave.trial_s for wave in view.waves), default=0.0)
    return view.timing.lease_s + longest + view.timing.watchdog_s


def _judge(slot: Slot, view: HubView) -> Inference | None:
    """What to say of a device whose slot ended; None when it spoke for itself or never armed."""
    if slot.use is SlotUse.ROLLBACK or view.now < slot.until or _has_spoken(slot, view):
        return None
    key = (slot.wave_id, slot.device)
    device = view.devices.get(slot.device)
    heard = device is not None and device.connected_since is not None and device.heard_in_session
    if device is not None and heard:
        if device.state not in IN_SWAP:
            return None
        gate = device.gate or "watchdog"
        return _infer(view, key, slot.attempt, OutcomeKind.FAILED, gate)
    if has_witness(view, slot.device, slot.granted_at):
        return _infer(view, key, slot.attempt, OutcomeKind.SILENT, "watchdog")
    return _infer(view, key, slot.attempt, OutcomeKind.UNKNOWN, "lease-expired")


def _convictions(view: HubView) -> tuple[Inference, ...]:
    """UNKNOWN that became SILENT: there is a witness now, and the device was not heard since.

    One that came back and went into its next swap is no longer that silence; its new slot has a time of its own.
    """
    whole = timedelta(seconds=_maxima_s(view))
    return tuple(
        _infer(view, (wave_id, device), word.attempt, OutcomeKind.SILENT, "watchdog")
        for (wave_id, device), word in view.words.items()
        if word.kind is OutcomeKind.UNKNOWN
        and not word.by_device
        and device not in view.slots
        and not _is_heard_since(view, device, word.received_at)
        and has_witness(view, device, word.received_at - whole)
    )


def _infer(view: HubView, key: tuple[str, str], attempt: int, kind: OutcomeKind, gate: str) -> Inference:
    wave_id, device = key
    word = view.words.get(key)
    base = word.sequence if word is not None and word.attempt == attempt else 0
    sequence = base if kind is OutcomeKind.UNKNOWN else base + 1
    seen = view.devices.get(device)
    last = f"last heard {seen.seen_at.isoformat()} in {seen.state.name}" if seen else "never heard"
    evidence = f"no outcome within lease, trial and watchdog maxima; {last}"
    return Inference(wave_id, device, attempt, sequence, kind, gate, evidence)


def _is_heard_since(view: HubView, path: str, since: datetime) -> bool:
    device = view.devices.get(path)
    return device is not None and (device.connected_since is not None or device.seen_at > since)


def _is_connected(view: HubView, path: str) -> bool:
    device = view.devices.get(path)
    return device is not None and device.connected_since is not None


def _relay(
    view: HubView, occupied: set[str], roster: Roster, waits: list[Wait]
) -> tuple[tuple[RollbackWish, Slot | None], ...]:
    taken = set(occupied)
    relayed: list[tuple[RollbackWish, Slot | None]] = []
    until = view.now + timedelta(seconds=_maxima_s(view))
    for wish in view.rollbacks:
        if not _is_connected(view, wish.device):
            continue
        if wish.is_rehearsal:
            relayed.append((wish, None))
            continue
        if not wish.is_signoff and wish.device not in taken:
            if why := roster.why_not_rollback(wish.device, taken):
                waits.append(Wait(wish.wave_id, wish.device, f"rollback: {why}"))
            if why or len(taken) >= _limit(view):
                continue
        taken.add(wish.device)
        slot = Slot(wish.device, wish.wave_id, SlotUse.ROLLBACK, 0, view.now, until, until)
        relayed.append((wish, slot))
    return tuple(relayed)


def _recall(view: HubView, gone: set[str], occupied: set[str], roster: Roster) -> list[Wait]:
    """Devices that hold a lease, have not armed by their last word, and whose group has fallen short meanwhile."""
    return [
        Wait(slot.wave_id, slot.device, f"its lease is held back: {why}")
        for slot in view.slots.values()
        if slot.use is SlotUse.SWAP
        and slot.device not in gone
        and view.now < slot.expires_at
        and (device := view.devices.get(slot.device)) is not None
        and device.state in NOT_ARMED
        and (why := roster.why_recall(slot.device, occupied))
    ]


def _limit(view: HubView) -> int:
    """The strictest of the running waves."""
    return min((w.max_concurrent_swaps for w in view.waves if w.leasable), default=view.default_limit)


def _grant(
    view: HubView, occupied: set[str], held: frozenset[str], roster: Roster, waits: list[Wait]
) -> tuple[Slot, ...]:
    taken = set(occupied)
    granted: list[Slot] = []
    limit, devices, wanted = _limit(view), view.devices, UpdateState.VERIFIED
    for wave in view.waves:
        if not wave.leasable or view.now >= wave.expires_at or not _has_settled(view, wave):
            continue
        candidates = sorted(
            (d for d in map(devices.get, wave.devices) if d and d.state is wanted and _asks(view, wave, d, held)),
            key=lambda d: (d.attempt, d.path),
        )
        for device in candidates:
            if why := roster.why_not_swap(device.path, wave.groups, taken):
                waits.append(Wait(wave.wave_id, device.path, why))
                continue
            if device.path not in taken and len(taken) >= limit:
                continue  # a later candidate may hold a slot already and only need a fresh lease
            taken.add(device.path)
            granted.append(_slot(view, wave, device))
        held |= {slot.device for slot in granted}
    return tuple(granted)


def _has_settled(view: HubView, wave: WaveView) -> bool:
    """Rule 4, for the targets of this wave."""
    if view.now >= view.incarnation_since + timedelta(seconds=_maxima_s(view)):
        return True
    return all(_has_said(view, path, view.incarnation_since) for path in wave.devices)


def _asks(view: HubView, wave: WaveView, device: DeviceView, held: frozenset[str]) -> bool:
    """Whether a device that is VERIFIED wants a lease of this wave and a permit lets it have one."""
    if device.wave_id != wave.wave_id:
        return False
    if device.connected_since is None or not device.heard_in_session:
        return False
    if device.path in held and not _has_lapsed(view.slots.get(device.path), wave, view.now):
        return False
    if any(wish.device == device.path for wish in view.rollbacks):
        return False
    word = view.words.get((wave.wave_id, device.path))
    if word is not None and (word.kind not in _ASKS_AGAIN or word.is_final_refusal):
        return False
    permit = view.permits.get((wave.wave_id, device.path))
    return (
        permit is not None
        and permit.hub_incarnation == view.incarnation
        and view.now < permit.expires_at
        and 1 <= device.attempt <= permit.attempts
    )


def _has_lapsed(slot: Slot | None, wave: WaveView, now: datetime) -> bool:
    """Whether a slot is a lapsed lease of that wave, for which its device may get a fresh one."""
    return slot is not None and slot.use is SlotUse.SWAP and slot.wave_id == wave.wave_id and now >= slot.expires_at


def _slot(view: HubView, wave: WaveView, device: DeviceView) -> Slot:
    permit = view.permits[wave.wave_id, device.path]
    expires_at = min(view.now + timedelta(seconds=view.timing.lease_s), wave.expires_at, permit.expires_at)
    until = expires_at + timedelta(seconds=wave.trial_s + view.timing.watchdog_s)
    return Slot(device.path, wave.wave_id, SlotUse.SWAP, device.attempt, view.now, expires_at, until)
