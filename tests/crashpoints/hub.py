"""A store hub at the seam of the session: no wire, the same rules, and a state that is a value.

What the hub knows is durable at once (its own crash points are not looked at here), so a device that was cut off finds
one that knows all it was ever told. It plays control and the region's authority as well. ``HubState`` is a value, and
replaced as a whole, so that a crash point keeps it by keeping a reference.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from tests.crashpoints.fleet import DEVICE, HUB, IMAGE_BYTES, Fleet, Served
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import LinkDownError
from wavemesh.policy.document import policy_from_json
from wavemesh.session.frames import HeldResource, Report, Resource, ResourceKey, ResourceVersion
from wavemesh.trust.enrolments import IssueAnswer, RenewalRequest
from wavemesh.trust.envelope import sign_as_node, sign_statement
from wavemesh.trust.statements import (
    DeviceOutcome,
    DeviceStatus,
    Digest,
    Envelope,
    EventReport,
    HealthAck,
    HealthPing,
    HealthPingAnswer,
    Lease,
    LeaseGrant,
    OutcomeReport,
    Permit,
    SnapshotReport,
    UpdateState,
    WaveOrder,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable

    from wavemesh.runtime.clock import Clock
    from wavemesh.session.seams import ReportLog, ResourceSink

EPOCH = "e" * 32
ATTEMPTS = 4
LEASE = timedelta(hours=12)
_HOLDING = frozenset({UpdateState.VERIFIED, UpdateState.ARMED, UpdateState.TRIAL, UpdateState.COMMITTING})
_BATCH = 64
_PIECE_BYTES = 2048


@dataclass(frozen=True, slots=True)
class Word:
    """An outcome that reached the hub."""

    wave_id: str
    attempt: int
    sequence: int
    kind: str
    gate: str
    evidence: str
    firmware_version: str


@dataclass(frozen=True, slots=True)
class HubState:
    """All that the hub and those behind it know. ``garbled_reads``: how many more reads of a blob bring wrong bytes;
    ``done``: what an operator or control did in this scenario.
    """

    wanted: tuple[Resource, ...] = ()
    counter: int = 0
    cursors: tuple[tuple[str, int], ...] = ()
    words: tuple[Word, ...] = ()
    events: tuple[tuple[str, str], ...] = ()
    granted: tuple[tuple[str, int], ...] = ()
    renewals: int = 0
    is_reachable: bool = True
    garbled_reads: int = 0
    done: tuple[str, ...] = ()

    def cursor(self, incarnation: str) -> int:
        """The last report that the hub has of an incarnation."""
        return dict(self.cursors).get(incarnation, 0)

    def serving(self, *served: Served) -> HubState:
        """The same with these resources wanted, in the place of those with the same keys."""
        wanted, counter = {one.key: one for one in self.wanted}, self.counter
        for one in served:
            counter += 1
            key = ResourceKey(one.type, one.name)
            digest = hashlib.sha256(one.content).hexdigest()
            wanted[key] = Resource(key, ResourceVersion(EPOCH, counter), digest, one.content)
        return replace(self, wanted=tuple(wanted.values()), counter=counter)

    def without(self, key: ResourceKey) -> HubState:
        """The same with that resource not wanted any more."""
        return replace(self, wanted=tuple(one for one in self.wanted if one.key != key))

    def having_done(self, name: str) -> HubState:
        """The same after that was done."""
        return replace(self, done=(*self.done, name))


class Hub:
    """Answers one device. ``changed`` is called after every change of the state."""

    def __init__(self, fleet: Fleet, state: HubState, clock: Clock) -> None:
        self.fleet = fleet
        self.state = state
        self.is_on = True
        self.changed: Callable[[], None] = lambda: None
        self._clock = clock

    def become(self, state: HubState) -> None:
        """Know something else from now on."""
        if state != self.state:
            self.state = state
            self.changed()

    # --- reports and status ------------------------------------------------------------------------------------------

    def take_reports(self, incarnation: str, first: int, reports: Iterable[Report]) -> int:
        """Apply those that are new; returns the cursor."""
        state = self.state
        cursor = state.cursor(incarnation)
        for number, report in enumerate(reports, first):
            if number != cursor + 1:
                continue
            cursor = number
            words, events = _told(report)
            state = replace(state, words=(*state.words, *words), events=(*state.events, *events))
        cursors = {**dict(state.cursors), incarnation: cursor}
        self.become(replace(state, cursors=tuple(cursors.items())))
        return cursor

    def take_status(self, status: DeviceStatus) -> None:
        """VERIFIED with a wave asks for a lease; what holds none gives it back."""
        key = ResourceKey("lease", status.wave_id)
        if status.state is UpdateState.VERIFIED:
            if (status.wave_id, status.attempt) not in self.state.granted:
                granted = (*self.state.granted, (status.wave_id, status.attempt))
                grant = Served("lease", status.wave_id, self._grant(status.wave_id, status.attempt))
                self.become(replace(self.state.serving(grant), granted=granted))
        elif status.state not in _HOLDING and any(one.key == key for one in self.state.wanted):
            # The same attempt may be asked for again: its lease was not used.
            self.become(replace(self.state.without(key), granted=()))

    def _grant(self, wave_id: str, attempt: int) -> bytes:
        now = self._clock.now()
        lease = Lease(wave_id, DEVICE.path, f"{attempt:032x}", attempt, now, now + LEASE)
        firmware = self._ordered_firmware(wave_id)
        permit = Permit(wave_id, DEVICE.path, ATTEMPTS, 1, firmware, now, now + LEASE, "1" * 32)
        return encode(
            LeaseGrant(sign_as_node(lease, self.fleet.hub), sign_statement(permit, [self.fleet.keys.control]))
        )

    def _ordered_firmware(self, wave_id: str) -> Digest | None:
        """What the wave's order installs, None for a config alone."""
        wanted = {
            one.key: decode(Envelope, one.content).payload
            for one in self.state.wanted
            if one.key.type in {"order", "policy"}
        }
        order = decode(WaveOrder, wanted[ResourceKey("order", f"{wave_id}/{HUB.name}")])
        policy = policy_from_json(wanted[ResourceKey("policy", order.policy_digest)])
        release = next(one for one in self.fleet.releases.values() if one.name == order.release)
        return release.firmware.digest if release.firmware is not None and policy.artifacts.firmware else None

    # --- asks --------------------------------------------------------------------------------------------------------

    def answer(self, kind: str, body: bytes) -> bytes:
        """What a device asks for."""
        envelope = decode(Envelope, body)
        now = self._clock.now()
        if kind == "renew":
            request = decode(RenewalRequest, envelope.payload)
            self.become(replace(self.state, renewals=self.state.renewals + 1))
            return encode(IssueAnswer(self.fleet.issue(request.csr, now)))
        decode(HealthPing, envelope.payload)
        digest = hashlib.sha256(envelope.payload).hexdigest()
        ack = sign_statement(HealthAck(digest, "control", now), [self.fleet.keys.control])
        return encode(HealthPingAnswer(ack, "live", None))


def _told(report: Report) -> tuple[list[Word], list[tuple[str, str]]]:
    if report.kind == "event":
        event = decode(EventReport, report.body)
        return [], [(event.kind, event.gate)]
    is_snapshot = report.kind == "snapshot"
    body = decode(SnapshotReport, report.body) if is_snapshot else decode(OutcomeReport, report.body)
    outcomes = [decode(DeviceOutcome, one.payload) for one in body.outcomes]
    return [
        Word(one.wave_id, one.attempt, one.sequence, one.kind.name, one.gate, one.evidence, one.firmware_version)
        for one in outcomes
    ], []


class SeamUpstream:
    """Implements ``wavemesh.session.seams.Upstream`` towards ``Hub``, by the rules of ``wavemesh/session/child.py``."""

    def __init__(self, hub: Hub, log: ReportLog, sink: ResourceSink) -> None:
        self._hub = hub
        self._log = log
        self._sink = sink
        self._news = asyncio.Event()
        self._status: bytes | None = None
        self.is_connected = False
        self.refusal = ""
        self.capabilities: frozenset[str] = frozenset()

    def wake(self) -> None:
        self._news.set()

    def set_status(self, key: str, body: bytes | None) -> None:
        self._status = body
        self._news.set()

    async def ask(self, kind: str, body: bytes, timeout_s: float) -> bytes:
        if not self.is_connected or not self._is_up():
            raise LinkDownError("no session with the parent")
        return self._hub.answer(kind, body)

    async def move(self) -> None:
        """One wire is as good as another here."""

    async def drain(self) -> None:
        """Nobody says goodbye in a power cut."""

    def is_idle(self) -> bool:
        """Whether the hub has all that it can have."""
        return not self._news.is_set() and (not self._is_up() or self._log.next_number == self._log.first_number)

    def _is_up(self) -> bool:
        return self._hub.state.is_reachable and self._hub.is_on

    async def run(self) -> None:
        """Connect whenever the hub can be reached, and say and hear what there is."""
        self._hub.changed = self._news.set
        while True:
            self._news.clear()
            if self._is_up() and (self.is_connected or await self._connect()):
                await self._hear()
                await self._say()
            elif self.is_connected:
                self.is_connected = False
                await self._sink.disconnected("out of reach")
            await self._news.wait()

    async def _connect(self) -> bool:
        """Hello and Welcome, or Fenced: then the log starts again."""
        log = self._log
        cursor = self._hub.state.cursor(log.incarnation)
        sent_through: int = log.sent_through  # type: ignore[attr-defined]  # a device's log is a SentMark too
        if cursor > sent_through or cursor + 1 < log.first_number:
            await log.restart()
            self._news.set()
            return False
        await log.acknowledge(cursor)
        self.is_connected = True
        await self._sink.connected()
        return True

    async def _hear(self) -> None:
        held = {one.key: one for one in self._sink.held()}
        wanted = {one.key: one for one in self._hub.state.wanted}
        changed = [one for key, one in wanted.items() if key not in held or held[key] != _as_held(one)]
        removed = [key for key in held if key not in wanted]
        if changed or removed:
            rejected = await self._sink.apply(changed, removed)
            assert not rejected, rejected
        await self._sink.settled()

    async def _say(self) -> None:
        log = self._log
        incarnation = log.incarnation
        first = max(self._hub.state.cursor(incarnation) + 1, log.first_number)
        reports = await log.read(first, _BATCH)
        if reports:
            await log.mark_sent(first + len(reports) - 1)  # type: ignore[attr-defined]  # the same
            if self._is_up():
                await log.acknowledge(self._hub.take_reports(incarnation, first, reports))
        status, self._status = self._status, None
        if status is not None and self._is_up():
            self._hub.take_status(decode(DeviceStatus, status))


def _as_held(resource: Resource) -> HeldResource:
    return HeldResource(resource.key, resource.version, resource.digest)


class SeamArtifacts:
    """Implements the parts of ``ArtifactClient`` that a device uses."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    @asynccontextmanager
    async def transfer(self) -> AsyncIterator[None]:
        yield

    async def read(self, digest: Digest, offset: int = 0) -> AsyncGenerator[memoryview, None]:
        content, state = self._hub.fleet.blobs[digest.sha256], self._hub.state
        if state.garbled_reads and digest.size_bytes == IMAGE_BYTES:
            self._hub.become(replace(state, garbled_reads=state.garbled_reads - 1))
            content = content[::-1]
        for start in range(offset, len(content), _PIECE_BYTES):
            if not (self._hub.state.is_reachable and self._hub.is_on):
                raise LinkDownError("the hub is out of reach")
            yield memoryview(content)[start : start + _PIECE_BYTES]
