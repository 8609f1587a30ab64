"""Compares what should have been reported by now with what was, and names each difference by its cause (C2). Pure.

Causes, and when each is a discrepancy:

| cause | when |
|---|---|
| hub-unheard | no session and no word for ``unheard_s``; it stands for all that is below it |
| device-unheard | its hub is there, and there was no word of the device for ``unheard_s`` |
| order-undelivered | its hub is there, and has not acknowledged a wave's latest order for ``settle_s`` |
| permit-unspent | the wave runs, the device is there, and its permit has been out for ``unheard_s`` |
| snapshot-missing | a hub has shown another incarnation than its permits are bound to for ``settle_s`` |
| ledger-differs | a hub has said for ``settle_s`` that it holds other outcomes than control |
| firmware-differs | a device that is in no open wave runs other firmware than it signed last |
| certificate-missing | the wave runs, the device is there, and it has not renewed for ``unheard_s`` |
| wave-overdue | a wave should have had control's last word ``settle_s`` ago |

What is under way between two tiers differs for moments; hence ``settle_s``. Of what is below a hub that is not there
nothing is expected but the hub.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from datetime import datetime


class Cause(enum.Enum):
    """Why expected and reported progress differ; values as in operator.proto."""

    HUB_UNHEARD = 1
    DEVICE_UNHEARD = 2
    ORDER_UNDELIVERED = 3
    PERMIT_UNSPENT = 4
    SNAPSHOT_MISSING = 5
    LEDGER_DIFFERS = 6
    FIRMWARE_DIFFERS = 7
    CERTIFICATE_MISSING = 8
    WAVE_OVERDUE = 9

    @property
    def word(self) -> str:
        """For people: "hub-unheard"."""
        return self.name.lower().replace("_", "-")


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a word may be missing, and how long two tiers may differ; seconds."""

    unheard_s: float
    settle_s: float


@dataclass(frozen=True, slots=True)
class HubFacts:
    """A super hub or store hub, by path; ``heard_at`` is its last word."""

    path: str
    is_connected: bool
    heard_at: datetime


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A registered device; digests are of its firmware: by its status, and as it last signed ("" if it never did)."""

    path: str
    is_connected: bool
    heard_at: datetime | None
    runs_sha256: str
    signed_sha256: str
    is_in_wave: bool


@dataclass(frozen=True, slots=True)
class PermitFacts:
    """An outstanding permit; ``state`` is what its device says, for people."""

    device: str
    issued_at: datetime
    hub_incarnation: str
    state: str = ""


@dataclass(frozen=True, slots=True)
class HubWord:
    """What a hub shows, each with since when: its incarnation, and the digest of its ledger ("" if it says none)."""

    incarnation: str
    incarnation_since: datetime
    ledger: str
    ledger_since: datetime


@dataclass(frozen=True, slots=True)
class ShareFacts:
    """One store's share of a wave that has not had its last word; ``ledger`` is the digest of control's own."""

    wave_id: str
    store: str
    is_running: bool
    since: datetime
    is_told: bool
    ledger: str
    permits: Sequence[PermitFacts] = ()
    without_certificate: Sequence[str] = ()
    hub: HubWord | None = None


@dataclass(frozen=True, slots=True)
class WaveFacts:
    """A wave without control's last word, and when that is due."""

    wave_id: str
    state: str
    due_at: datetime


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything one reconciliation looks at."""

    hubs: Sequence[HubFacts] = ()
    devices: Sequence[DeviceFacts] = ()
    shares: Sequence[ShareFacts] = ()
    waves: Sequence[WaveFacts] = ()


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """One difference; ``subject`` is a node's path or, for a wave, its id. The texts are for people."""

    cause: Cause
    subject: str
    wave_id: str
    expected: str
    reported: str

    @property
    def key(self) -> tuple[str, str, str]:
        """By which it is the same one tomorrow."""
        return (self.cause.name, self.wave_id, self.subject)


def reconcile(facts: Facts, limits: Limits, now: datetime) -> tuple[Discrepancy, ...]:
    """Every discrepancy, by cause and subject."""
    found = [*_hubs(facts, limits, now), *_devices(facts, limits, now), *_shares(facts, limits, now)]
    found += _waves(facts.waves, limits, now)
    return tuple(sorted(found, key=lambda one: (one.cause.value, one.subject, one.wave_id)))


def _hubs(facts: Facts, limits: Limits, now: datetime) -> Iterator[Discrepancy]:
    there = {hub.path: hub.is_connected for hub in facts.hubs}
    for hub in facts.hubs:
        is_shadowed = not there.get(_above(hub.path), True)
        if not hub.is_connected and not is_shadowed and now - hub.heard_at >= _s(limits.unheard_s):
            yield Discrepancy(Cause.HUB_UNHEARD, hub.path, "", "a session", f"last word {_at(hub.heard_at)}")


def _devices(facts: Facts, limits: Limits, now: datetime) -> Iterator[Discrepancy]:
    there = {hub.path for hub in facts.hubs if hub.is_connected}
    for device in facts.devices:
        is_late = device.heard_at is None or now - device.heard_at >= _s(limits.unheard_s)
        if _above(device.path) in there and not device.is_connected and is_late:
            said = f"last word {_at(device.heard_at)}" if device.heard_at else "never heard"
            yield Discrepancy(Cause.DEVICE_UNHEARD, device.path, "", "a session", said)
        known = device.signed_sha256 and device.runs_sha256
        if known and device.signed_sha256 != device.runs_sha256 and not device.is_in_wave:
            expected, runs = f"firmware {device.signed_sha256[:12]}", f"runs {device.runs_sha256[:12]}"
            yield Discrepancy(Cause.FIRMWARE_DIFFERS, device.path, "", expected, runs)


def _shares(facts: Facts, limits: Limits, now: datetime) -> Iterator[Discrepancy]:
    there = {hub.path for hub in facts.hubs if hub.is_connected}
    present = {device.path for device in facts.devices if device.is_connected}
    for share in facts.shares:
        if share.store in there:
            yield from _share(share, present, limits, now)


def _share(share: ShareFacts, present: set[str], limits: Limits, now: datetime) -> Iterator[Discrepancy]:
    settled, late = now - _s(limits.settle_s), now - _s(limits.unheard_s)

    def found(cause: Cause, subject: str, expected: str, reported: str) -> Discrepancy:
        return Discrepancy(cause, subject, share.wave_id, expected, reported)

    if not share.is_told and share.since <= settled:
        yield found(Cause.ORDER_UNDELIVERED, share.store, "the latest order", "not acknowledged")
    hub = share.hub
    bound = {permit.hub_incarnation for permit in share.permits}
    if hub is not None and hub.incarnation and bound - {hub.incarnation} and hub.incarnation_since <= settled:
        yield found(Cause.SNAPSHOT_MISSING, share.store, "a snapshot", f"incarnation {hub.incarnation[:8]} without one")
    if hub is not None and hub.ledger and hub.ledger != share.ledger and hub.ledger_since <= settled:
        yield found(Cause.LEDGER_DIFFERS, share.store, f"ledger {share.ledger[:12]}", f"ledger {hub.ledger[:12]}")
    if not share.is_running:
        return
    for permit in share.permits:
        if permit.issued_at <= late and permit.device in present:
            yield found(Cause.PERMIT_UNSPENT, permit.device, f"an outcome since {_at(permit.issued_at)}", permit.state)
    for device in share.without_certificate:
        if share.since <= late and device in present:
            yield found(Cause.CERTIFICATE_MISSING, device, "a certificate younger than the wave", "an older one")


def _waves(waves: Sequence[WaveFacts], limits: Limits, now: datetime) -> Iterator[Discrepancy]:
    for wave in waves:
        if wave.due_at <= now - _s(limits.settle_s):
            expected = f"closed at {_at(wave.due_at)}"
            yield Discrepancy(Cause.WAVE_OVERDUE, wave.wave_id, wave.wave_id, expected, wave.state)


def changes(
    known: Mapping[tuple[str, str, str], datetime], found: Sequence[Discrepancy]
) -> tuple[list[Discrepancy], list[tuple[str, str, str]]]:
    """Which discrepancies are news, and which known ones are gone, by key: each is audited when it comes and goes."""
    keys = {one.key for one in found}
    return [one for one in found if one.key not in known], [key for key in known if key not in keys]


def _above(path: str) -> str:
    return path.rsplit("/", 2)[0]


def _s(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def _at(time: datetime) -> str:
    return time.isoformat(timespec="seconds")
