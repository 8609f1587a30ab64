"""What super hubs report: every signature is verified, every effect is applied once, together with the cursor.

Rules:
- An outcome counts when its envelope is signed by the device itself, or by the hub of the device's store for the kinds
  a hub may infer, and the device is a target of the wave. The super hub that carries it is not believed for anything.
- What cannot be believed is dropped and audited; it never ends the session, for the reports behind it are good. What is
  signed with a certificate that is not valid yet does end it: then our clock is behind, and it is told again later.
- A word of control that a hub holds, and that is newer than what is here, is control's own (control/recovery.py).
- Verification is CPU work and runs in a thread; the transaction only compares and writes.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sqlalchemy import select, update

from control import schema, store
from control.intents import TakenBack
from control.ledger import HUB_KINDS, Outcome, beats
from control.recovery import KeptWord
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import PeerError
from wavemesh.identity.binding import issued_at
from wavemesh.identity.certificates import load_certificate
from wavemesh.identity.nodes import NodeId, Role, is_within
from wavemesh.policy.gates import parse_gate
from wavemesh.trust.enrolments import CertificateReport
from wavemesh.trust.envelope import EarlySignatureError, verify_node
from wavemesh.trust.kept import KEPT_KIND, KeptReport
from wavemesh.trust.statements import (
    DeviceOutcome,
    EventReport,
    IntentCancellation,
    IntentReport,
    OperatorIntent,
    OutcomeKind,
    OutcomeReport,
    SnapshotReport,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from control.database import Database, Transaction
    from control.enrolments import Enrolments
    from control.fleet import Fleet
    from control.intents import Intents
    from control.recovery import Recovery
    from control.revocations import Revocations
    from control.tracing import Tracing
    from control.waves import Waves
    from wavemesh.identity.authorities import Authorities
    from wavemesh.runtime.clock import Clock
    from wavemesh.session.frames import Report
    from wavemesh.trust.statements import Envelope

MAX_SEQUENCE = 2**63 - 1
_MAX_KIND_CHARACTERS = 100
_WITHOUT_GATE = frozenset({OutcomeKind.PENDING, OutcomeKind.UPDATED})


class BadReportError(PeerError):
    """A report says what its sender may not say, or is malformed."""

    reason = "BAD_REPORT"


@dataclass(frozen=True, slots=True)
class VerifiedOutcome:
    """An outcome whose signer may say it."""

    outcome: DeviceOutcome
    signer: NodeId
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class VerifiedIntent:
    """An operator's intent that a hub took."""

    intent: OperatorIntent
    operator: NodeId
    envelope: Envelope
    via: str
    taken_back: TakenBack | None = None


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """A node of a new incarnation has told all it holds."""

    node: str
    incarnation: str


@dataclass(frozen=True, slots=True)
class Dropped:
    """What is not believed, and why."""

    why: str


Finding: TypeAlias = (
    VerifiedOutcome | VerifiedIntent | EventReport | CertificateReport | SnapshotEnd | KeptWord | Dropped
)


class Reports:
    """Applies reports of super hubs."""

    def __init__(
        self,
        *,
        database: Database,
        waves: Waves,
        intents: Intents,
        revocations: Revocations,
        fleet: Fleet,
        enrolments: Enrolments,
        recovery: Recovery,
        authorities: Authorities,
        clock: Clock,
        tracing: Tracing,
    ) -> None:
        """Take what verifying and applying need."""
        self._database = database
        self._waves = waves
        self._intents = intents
        self._revocations = revocations
        self._fleet = fleet
        self._enrolments = enrolments
        self._recovery = recovery
        self._authorities = authorities
        self._clock = clock
        self._tracing = tracing

    async def cursor(self, child: NodeId, incarnation: str) -> int:
        """The highest report number of that incarnation whose effect is durable; 0 if it is unknown."""
        async with self._database.reading() as tx:
            return await _cursor(tx, child, incarnation)

    async def apply(self, child: NodeId, incarnation: str, first_number: int, reports: Sequence[Report]) -> None:
        """Apply reports and move the cursor; those at or below the cursor are passed over."""
        now = self._clock.now()
        found = await asyncio.to_thread(self._examine, child, reports, now)
        async with self._database.transaction() as tx:
            through = await _cursor(tx, child, incarnation)
            touched: set[str] = set()
            for number, findings in enumerate(found, start=first_number):
                if number > through:
                    for finding in findings:
                        await self._effect(tx, child, finding, touched)
            last = max(through, first_number + len(reports) - 1)
            await tx.put(schema.cursors, {"child": child.path, "incarnation": incarnation, "through": last})
            for wave_id in sorted(touched):
                await self._waves.settle(tx, wave_id)

    def _examine(self, child: NodeId, reports: Sequence[Report], now: datetime) -> list[list[Finding]]:
        return [self._read(child, report, now) for report in reports]

    def _read(self, child: NodeId, report: Report, now: datetime) -> list[Finding]:
        """What one report says. Blocking."""
        try:
            match report.kind:
                case "outcome":
                    envelopes = decode(OutcomeReport, report.body).outcomes
                    found: list[Finding] = [self._verify_outcome(child, envelope, now) for envelope in envelopes]
                case "snapshot":
                    found = self._read_snapshot(child, decode(SnapshotReport, report.body), now)
                case "intent":
                    found = [self._verify_intent(child, decode(IntentReport, report.body), now)]
                case "event":
                    found = [_checked(child, decode(EventReport, report.body))]
                case str() if report.kind == KEPT_KIND:
                    found = [self._recovery.read(decode(KeptReport, report.body))]
                case "certificate":
                    found = [_checked(child, decode(CertificateReport, report.body))]
                case _:
                    found = [Dropped(f"report of unknown kind {report.kind[:_MAX_KIND_CHARACTERS]!r}")]
        except EarlySignatureError:
            raise  # our clock is behind: the session ends, and it is told again
        except PeerError as error:
            return [Dropped(f"report {report.kind!r}: {error}")]
        return found

    def _read_snapshot(self, child: NodeId, snapshot: SnapshotReport, now: datetime) -> list[Finding]:
        _check_below(child, snapshot.node, "snapshot of")
        findings: list[Finding] = [self._verify_outcome(child, envelope, now) for envelope in snapshot.outcomes]
        return [*findings, SnapshotEnd(snapshot.node, snapshot.incarnation)] if snapshot.last else findings

    def _verify_outcome(self, child: NodeId, envelope: Envelope, now: datetime) -> Finding:
        try:
            signer, outcome = verify_node(envelope, DeviceOutcome, self._authorities, now)
            _check_below(child, outcome.device, "outcome of")
            _check_outcome(signer, outcome)
        except EarlySignatureError:
            raise
        except PeerError as error:
            return Dropped(f"outcome: {error}")
        return VerifiedOutcome(outcome, signer, envelope)

    def _verify_intent(self, child: NodeId, report: IntentReport, now: datetime) -> Finding:
        _check_below(child, report.via, "intent given to")
        operator, intent = verify_node(report.intent, OperatorIntent, self._authorities, now, Role.OPERATOR)
        taken_back = None
        if report.cancellation is not None:
            by, word = verify_node(report.cancellation, IntentCancellation, self._authorities, now, Role.OPERATOR)
            if word.intent_id != intent.intent_id:
                msg = f"cancellation of {word.intent_id!r} with intent {intent.intent_id!r}"
                raise BadReportError(msg)
            taken_back = TakenBack(by, report.via, word.reason)
        return VerifiedIntent(intent, operator, report.intent, report.via, taken_back)

    async def _effect(self, tx: Transaction, child: NodeId, finding: Finding, touched: set[str]) -> None:
        match finding:
            case VerifiedOutcome():
                certificate = load_certificate(finding.envelope.signatures[0].certificate)
                self._revocations.note_certificate(finding.signer.path, issued_at(certificate))
                await self._keep_outcome(tx, child, finding, touched)
            case VerifiedIntent():
                await self._submit(tx, finding)
            case EventReport():
                await self._keep_event(tx, child, finding)
            case CertificateReport():
                self._revocations.note_certificate(finding.node, finding.issued_at)
                await self._enrolments.heard(tx, child, finding)
                touched.update(await store.open_waves_of(tx, finding.node))
            case SnapshotEnd(node, incarnation):
                if self._fleet.knows_store(node):
                    await self._waves.hub_snapshot(tx, node, incarnation)
            case KeptWord():
                try:
                    await self._recovery.take(tx, finding)
                except PeerError as error:
                    await self._drop(tx, child, f"kept word: {error}")
            case Dropped(why):
                await self._drop(tx, child, why)

    async def _keep_outcome(self, tx: Transaction, child: NodeId, found: VerifiedOutcome, touched: set[str]) -> None:
        outcome = found.outcome
        row = await store.wave(tx, outcome.wave_id)
        targets = schema.wave_targets
        here = (targets.c.wave_id == outcome.wave_id, targets.c.device == outcome.device)
        if row is None or await tx.first(select(targets.c.device).where(*here)) is None:
            await self._drop(tx, child, f"outcome of {outcome.device}, which is no target of wave {outcome.wave_id!r}")
            return
        if outcome.attempt > row.attempts:
            await self._drop(tx, child, f"outcome of {outcome.device}: attempt {outcome.attempt} of {row.attempts}")
            return
        incoming = _ranked(found)
        if not beats(incoming, await store.outcome(tx, outcome.wave_id, outcome.device)):
            return
        await tx.put(schema.outcomes, _outcome_row(found, incoming))
        await self._tracing.merged(tx, outcome, found.signer)
        touched.add(outcome.wave_id)
        if incoming.by_device and outcome.firmware_sha256:
            devices = schema.devices
            runs = {"firmware_sha256": outcome.firmware_sha256, "firmware_version": outcome.firmware_version}
            await tx.run(update(devices).where(devices.c.path == outcome.device).values(**runs))

    async def _submit(self, tx: Transaction, found: VerifiedIntent) -> None:
        via = found.via if self._fleet.knows_store(found.via) else ""
        try:
            if found.taken_back is not None:
                await self._intents.cancel_reported(tx, found.taken_back, found.envelope, found.intent, found.operator)
                return
            await self._intents.submit(tx, found.envelope, found.intent, found.operator, via)
        except PeerError as error:
            await self._intents.refuse(tx, found.envelope, found.intent, found.operator, error)
            subject = found.intent.device or found.intent.wave_id
            detail = f"{found.intent.kind.name.lower()} given to {found.via}: {error}"
            await self._waves.audit(tx, found.operator.uri, "intent.refused", subject, detail)

    async def _keep_event(self, tx: Transaction, child: NodeId, event: EventReport) -> None:
        parts = (event.gate and f"gate {event.gate}", event.wave_id and f"wave {event.wave_id}", event.detail)
        row = {
            "at": event.at,
            "actor": NodeId(child.fleet, event.node).uri,
            "action": event.kind,
            "subject": event.subject,
            "detail": "; ".join(part for part in parts if part),
            "event_id": event.event_id,
        }
        await tx.add_new(schema.audit, row, "event_id")

    async def _drop(self, tx: Transaction, child: NodeId, why: str) -> None:
        await self._waves.audit(tx, child.uri, "report.refused", child.path, why[:4096])


async def _cursor(tx: Transaction, child: NodeId, incarnation: str) -> int:
    table = schema.cursors
    one = (table.c.child == child.path, table.c.incarnation == incarnation)
    return await tx.scalar(select(table.c.through).where(*one)) or 0


def _check_below(child: NodeId, path: str, what: str) -> None:
    if not is_within(path, child.path):
        msg = f"{what} {path!r} does not come from {child.path}'s region"
        raise BadReportError(msg)


def _check_outcome(signer: NodeId, outcome: DeviceOutcome) -> None:
    """Raise PeerError unless that signer may say that, in that form."""
    if signer.role is Role.DEVICE and signer.path != outcome.device:
        msg = f"{signer.uri} speaks for {outcome.device!r}"
        raise BadReportError(msg)
    if signer.role is Role.STORE_HUB and outcome.kind not in HUB_KINDS:
        msg = f"{signer.uri} says {outcome.kind.name.lower()} of {outcome.device}; only the device itself may"
        raise BadReportError(msg)
    if (outcome.kind in _WITHOUT_GATE) == bool(outcome.gate):
        msg = f"outcome {outcome.kind.name.lower()} of {outcome.device} with gate {outcome.gate!r}"
        raise BadReportError(msg)
    if outcome.gate:
        parse_gate(outcome.gate)
    if outcome.sequence > MAX_SEQUENCE:
        msg = f"outcome of {outcome.device}: sequence {outcome.sequence} is above {MAX_SEQUENCE}"
        raise BadReportError(msg)


def _checked(child: NodeId, said: EventReport | CertificateReport) -> EventReport | CertificateReport:
    """What a super hub says of a node below it; raises PeerError."""
    _check_below(child, NodeId(child.fleet, said.node).path, "word of")
    if isinstance(said, EventReport) and (
        len(said.kind) > _MAX_KIND_CHARACTERS or len(said.event_id) > schema.EVENT_ID_CHARACTERS
    ):
        msg = f"event of {said.node}: kind or id is too long"
        raise BadReportError(msg)
    return said


def _ranked(found: VerifiedOutcome) -> Outcome:
    outcome = found.outcome
    return Outcome(
        device=outcome.device,
        attempt=outcome.attempt,
        sequence=outcome.sequence,
        kind=outcome.kind,
        gate=outcome.gate,
        by_device=found.signer.role is Role.DEVICE,
        payload_sha256=hashlib.sha256(found.envelope.payload).hexdigest(),
    )


def _outcome_row(found: VerifiedOutcome, ranked: Outcome) -> dict[str, object]:
    outcome = found.outcome
    return {
        "wave_id": outcome.wave_id,
        "device": outcome.device,
        "attempt": outcome.attempt,
        "sequence": outcome.sequence,
        "kind": outcome.kind.name,
        "gate": outcome.gate,
        "by_device": ranked.by_device,
        "payload_sha256": ranked.payload_sha256,
        "signed_by": found.signer.uri,
        "evidence": outcome.evidence,
        "slot": outcome.slot,
        "firmware_sha256": outcome.firmware_sha256,
        "firmware_version": outcome.firmware_version,
        "at": outcome.at,
        "envelope": encode(found.envelope),
    }
