"""What the agent remembers, as operations on the state document; the session's ``ReportLog`` and ``SentMark``.

Rules. One word per wave and moment: an outcome is signed, numbered (attempt, sequence), kept until control closed the
wave and appended to the report log, all in the change that persists the progress it belongs to. A word that was said
already (same attempt, kind and gate) is not said again. A burned attempt is persisted in both copies of the document.
The log holds at most ``MAX_REPORTS``; a full one takes a new incarnation, whose snapshot says everything again.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from device import refusals
from device.progress import Outcome, Persist, Progress
from device.state import MAX_INSTALLED, MAX_INTENTS, MAX_WAVES, Document, StateFile, StoredReport, WaveRecord
from device.steps import Said
from wavemesh.codec.statements import decode, encode
from wavemesh.replacement import replaced
from wavemesh.session.frames import HeldResource, Report, ResourceKey
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import (
    DeviceOutcome,
    Envelope,
    EventReport,
    OutcomeKind,
    OutcomeReport,
    SnapshotReport,
    UpdateState,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from device.logs import DeviceLog
    from device.orders import Facts
    from device.progress import Target
    from device.tracing import Tracing
    from wavemesh.identity.credentials import Credentials
    from wavemesh.runtime.clock import Clock

MAX_REPORTS = 512
MAX_EVENTS = 64
MAX_EVIDENCE_BYTES = 4000
MAX_COMPARED_BYTES = 500
MAX_EARLIER = 8
SNAPSHOT_OUTCOMES = 32
PING_RESERVE = 100

_NOTHING_KNOWN = WaveRecord()
_FINAL = frozenset({OutcomeKind.UPDATED, OutcomeKind.ROLLED_BACK, OutcomeKind.FAILED})


class DeviceStore:
    """The durable side of one device."""

    def __init__(
        self, file: StateFile, credentials: Credentials, clock: Clock, log: DeviceLog, tracing: Tracing
    ) -> None:
        """``file`` is loaded; if it was recovered the report log restarts. Outcomes name the tail of ``log``."""
        self._tracing = tracing
        self._log = log
        self._file = file
        self._credentials = credentials
        self._clock = clock
        self._ping_counter = file.document.ping_ceiling
        self._is_connected = False
        if file.recovered:
            self._commit(self._restarted(file.document))
        tracing.attach(lambda: self.document, self._commit)

    @property
    def document(self) -> Document:
        """Everything, as it is durable."""
        return self._file.document

    # --- ReportLog ---------------------------------------------------------------------------------------------------

    @property
    def incarnation(self) -> str:
        """The incarnation of the report log."""
        return self.document.incarnation

    @property
    def next_number(self) -> int:
        """Number the next report will get."""
        return self.document.next_number

    @property
    def first_number(self) -> int:
        """Lowest number that can still be read."""
        return self.document.acknowledged + 1

    async def read(self, first: int, limit: int) -> Sequence[Report]:
        """Up to ``limit`` reports from ``first`` on."""
        start = first - self.first_number
        return [Report(report.kind, report.body) for report in self.document.reports[start : start + limit]]

    async def acknowledge(self, through: int) -> None:
        """Forget reports up to ``through``."""
        document = self.document
        dropped = min(through - document.acknowledged, len(document.reports))
        if dropped > 0:
            kept = document.reports[dropped:]
            self._commit(replaced(document, reports=kept, acknowledged=document.acknowledged + dropped))

    @property
    def sent_through(self) -> int:
        """Highest number that may have been sent."""
        return max(self.document.sent_through, self.document.acknowledged)

    async def mark_sent(self, through: int) -> None:
        """Reports up to ``through`` are about to be sent."""
        if through > self.sent_through:
            self._commit(replaced(self.document, sent_through=through))

    def note_link(self, *, is_connected: bool) -> None:
        """A session opened or ended. What is appended in one is marked as sent in the same write (see ``_commit``)."""
        self._is_connected = is_connected

    async def restart(self) -> None:
        """Take a new incarnation with a full snapshot."""
        self._commit(self._restarted(self.document))

    # --- progress and outcomes ---------------------------------------------------------------------------------------

    def persist(self, progress: Progress, words: Persist, boot_id: str, facts: Facts) -> bool:
        """Make progress, burn, the intent acted on and what is reported durable in one change.

        Returns whether a report was appended.
        """
        outcome, notice = words.outcome, words.notice
        document = _with_intent(replaced(self.document, progress=progress), progress.intent_id)
        if progress.state is UpdateState.ARMED:
            record = document.waves.get(progress.wave_id, _NOTHING_KNOWN)
            burned = replaced(record, burned=max(record.burned, progress.attempt))
            document = _with_wave(document, progress.wave_id, burned)
        if outcome is not None and progress.wave_id:
            document = self._with_outcome(document, progress, outcome, boot_id, facts)
        if notice is not None:
            event = self._event(progress.wave_id, notice.kind, notice.gate, notice.subject, notice.detail)
            document = self._with_report(document, event)
        if progress.state is UpdateState.COMMITTED and progress.target is not None:
            document = _installed(document, progress.target)
        grew = len(document.reports) > len(self.document.reports)
        document = self._traced(document, progress, outcome, boot_id, facts)
        self._commit(document, copies=2 if progress.state is UpdateState.ARMED else 1)
        return grew

    def say(self, wave_id: str, outcome: Outcome, boot_id: str, facts: Facts) -> None:
        """Report an outcome that no progress belongs to: the wave asks for what runs already."""
        progress = Progress(wave_id=wave_id, attempt=self.burned(wave_id))
        document = self._with_outcome(self.document, progress, outcome, boot_id, facts)
        said = self._said(document, progress, outcome)
        if said is not None:
            document = self._tracing.told(document, progress, said, boot_id, facts.running.slot.value)
        self._commit(document)

    def append_event(self, kind: str, gate: str, subject: str, detail: str) -> None:
        """Report something for control's audit."""
        event = self._event(self.document.progress.wave_id, kind, gate, subject, detail)
        self._commit(self._with_report(self.document, event))

    def tell_refusal(self, subject: str, gate: str, detail: str) -> None:
        """Log what was refused of the hub's words, by a gate or none, and report it when it is due (refusals.py)."""
        self._log.alert(f"refused {subject}: {gate}: {detail}" if gate else f"refused {subject}: {detail}")
        document, now = self.document, self._clock.now()
        if refusals.is_due(document.refusals, subject, gate, now):
            named = _bounded(subject, refusals.MAX_SUBJECT_BYTES)
            event = self._event(document.progress.wave_id, refusals.EVENT_KIND, gate, named, detail)
            told = refusals.Refusal(refusals.kind_of(subject), gate, now, event.body)
            document = replaced(document, refusals=refusals.with_refusal(document.refusals, told))
            self._commit(self._with_report(document, event))

    def burned(self, wave_id: str) -> int:
        """Attempts burned in a wave."""
        return self.document.waves.get(wave_id, _NOTHING_KNOWN).burned

    def evidence(self, wave_id: str) -> tuple[DeviceOutcome, ...]:
        """What this device said in a wave, the oldest first: refusals and rollbacks, and its latest word."""
        record = self.document.waves.get(wave_id, _NOTHING_KNOWN)
        words = (*record.earlier, record.envelope) if record.envelope else ()
        return tuple(decode(DeviceOutcome, decode(Envelope, word).payload) for word in words)

    def is_finished(self, wave_id: str) -> bool:
        """Whether this device has said its last word in the wave."""
        record = self.document.waves.get(wave_id)
        if record is None or record.kind == 0 or record.closed:
            return record is not None and record.closed
        kind = OutcomeKind(record.kind)
        return kind in _FINAL or (kind in {OutcomeKind.INCONCLUSIVE, OutcomeKind.REFUSED} and record.gate == "halted")

    # --- resources ---------------------------------------------------------------------------------------------------

    def content(self, held: HeldResource) -> bytes | None:
        """The bytes of a held resource, None if they were lost."""
        return self._file.content(held.digest)

    def store_resources(
        self,
        added: Iterable[tuple[HeldResource, bytes]],
        removed: Iterable[ResourceKey],
        generations: Mapping[str, int],
        **changes: object,
    ) -> None:
        """Make resources durable and others forgotten, with other fields of the document, in one change.

        ``generations``: those of the orders held, by wave. The highest is remembered, so that an older one is a replay.
        """
        before = self.document
        held = {one.key: one for one in before.held}
        for key in removed:
            held.pop(key, None)
        for one, content in added:
            self._file.store_content(one.digest, content)
            held[one.key] = one
        document = replaced(before, held=tuple(held.values()), **changes)
        for wave_id, generation in generations.items():
            record = document.waves.get(wave_id, _NOTHING_KNOWN)
            if generation > record.generation:
                document = _with_wave(document, wave_id, replaced(record, generation=generation))
        if document != before:
            self._commit(document)
        if {one.digest for one in before.held} - {one.digest for one in document.held}:
            self._file.forget_contents()

    def close_wave(self, wave_id: str) -> None:
        """Forget the outcome of a wave that control closed; never to be taken up again."""
        record = self.document.waves.get(wave_id, _NOTHING_KNOWN)
        if not record.closed:
            self._commit(_with_wave(self.document, wave_id, replaced(record, envelope=b"", earlier=(), closed=True)))

    def note_intent(self, intent_id: str) -> None:
        """Remember an intent that was carried out."""
        self._commit(_with_intent(self.document, intent_id))

    def note_probed(self, slot: str) -> None:
        """Remember that a slot can be written."""
        self._commit(replaced(self.document, probed_slots=(*self.document.probed_slots, slot)))

    def note_logs_uploaded(self, through: int) -> None:
        """Remember which log lines the hub has; on a full disk DiskFullError, and they are told again."""
        self._commit(replaced(self.document, logs_uploaded=through), may_cost_reserve=False)

    def next_ping(self) -> int:
        """A number that no ping of this device had before; reserved durably in blocks."""
        self._ping_counter += 1
        if self._ping_counter > self.document.ping_ceiling:
            self._commit(replaced(self.document, ping_ceiling=self._ping_counter + PING_RESERVE))
        return self._ping_counter

    # --- changes -----------------------------------------------------------------------------------------------------

    def _commit(self, document: Document, copies: int = 1, *, may_cost_reserve: bool = True) -> None:
        if len(document.reports) > MAX_REPORTS:
            document = self._restarted(document)
        elif self._is_connected and document.next_number > self.document.next_number:
            # It is sent in a moment. Only a log that the hub welcomed in this run may say so: one restored from an
            # older state that marks what it appended offline would hide that other reports had these numbers.
            document = replaced(document, sent_through=document.next_number - 1)
        self._file.commit(document, copies=copies, may_cost_reserve=may_cost_reserve)

    def _traced(
        self, document: Document, progress: Progress, outcome: Outcome | None, boot_id: str, facts: Facts
    ) -> Document:
        """The document with the spans that this change ends."""
        said = self._said(document, progress, outcome) if outcome is not None else None
        return self._tracing.traced(document, progress, said, boot_id, facts.running.slot.value)

    def _said(self, document: Document, progress: Progress, outcome: Outcome) -> Said | None:
        """The outcome with its numbers, if this change says it and no earlier one did."""
        before = self.document.waves.get(progress.wave_id, _NOTHING_KNOWN)
        record = document.waves.get(progress.wave_id, _NOTHING_KNOWN)
        if record.sequence == before.sequence:
            return None
        return Said(outcome, record.attempt, record.sequence)

    def _with_outcome(
        self, document: Document, progress: Progress, outcome: Outcome, boot_id: str, facts: Facts
    ) -> Document:
        record = document.waves.get(progress.wave_id, _NOTHING_KNOWN)
        if (record.attempt, record.kind, record.gate) == (progress.attempt, outcome.kind.value, outcome.gate):
            return document
        statement = DeviceOutcome(
            wave_id=progress.wave_id,
            device=self._credentials.node_id.path,
            attempt=progress.attempt,
            sequence=record.sequence + 1,
            kind=outcome.kind,
            gate=outcome.gate,
            evidence=_bounded(outcome.evidence),
            boot_id=boot_id,
            slot=facts.running.slot.value,
            firmware_sha256=facts.firmware_sha256,
            firmware_version=facts.firmware_version,
            log_sha256=self._log.tail_sha256(),
            at=self._clock.now(),
            observed=_bounded(outcome.observed, MAX_COMPARED_BYTES),
            required=_bounded(outcome.required, MAX_COMPARED_BYTES),
            slots=facts.slots,
        )
        envelope = sign_as_node(statement, self._credentials)
        said = replaced(
            record,
            attempt=progress.attempt,
            sequence=statement.sequence,
            kind=outcome.kind.value,
            gate=outcome.gate,
            envelope=encode(envelope),
            earlier=(*record.earlier, record.envelope)[-MAX_EARLIER:] if record.gate else record.earlier,
        )
        body = encode(OutcomeReport((envelope,)))
        return self._with_report(_with_wave(document, progress.wave_id, said), StoredReport("outcome", body))

    def _event(self, wave_id: str, kind: str, gate: str, subject: str, detail: str) -> StoredReport:
        report = EventReport(
            event_id=secrets.token_hex(16),
            node=self._credentials.node_id.path,
            kind=kind,
            gate=gate,
            wave_id=wave_id,
            subject=subject,
            detail=_bounded(detail),
            at=self._clock.now(),
        )
        return StoredReport("event", encode(report))

    def _with_report(self, document: Document, report: StoredReport) -> Document:
        return replaced(document, reports=(*document.reports, report))

    def _restarted(self, document: Document) -> Document:
        """A new incarnation: the log holds a snapshot of all outcomes, then the events nobody acknowledged, and the
        refusals that a hostile hub may have acknowledged and kept to itself.
        """
        incarnation = secrets.token_hex(16)
        envelopes = [decode(Envelope, record.envelope) for record in document.waves.values() if record.envelope]
        parts = [envelopes[i : i + SNAPSHOT_OUTCOMES] for i in range(0, len(envelopes), SNAPSHOT_OUTCOMES)] or [[]]
        reports = tuple(
            StoredReport(
                "snapshot",
                encode(
                    SnapshotReport(
                        self._credentials.node_id.path, incarnation, tuple(part), last=number == len(parts) - 1
                    )
                ),
            )
            for number, part in enumerate(parts)
        )
        told = (StoredReport("event", one.report) for one in document.refusals)
        waiting = (report for report in document.reports if report.kind == "event")
        events = tuple(dict.fromkeys((*told, *waiting)))[-MAX_EVENTS:]
        return replaced(document, incarnation=incarnation, acknowledged=0, sent_through=0, reports=(*reports, *events))


def _with_wave(document: Document, wave_id: str, record: WaveRecord) -> Document:
    waves = {**document.waves, wave_id: record}
    if len(waves) > MAX_WAVES:
        # Control closes waves; a device that never hears of it keeps the newest. Those that only say which order was
        # seen go first: a hub that plays old orders again must not make a device forget what it burned.
        by_worth = sorted(waves, key=lambda name: bool(waves[name].burned or waves[name].kind or waves[name].closed))
        for name in by_worth[: len(waves) - MAX_WAVES]:
            del waves[name]
    return replaced(document, waves=waves)


def _with_intent(document: Document, intent_id: str) -> Document:
    if not intent_id or intent_id in document.intents:
        return document
    return replaced(document, intents=(*document.intents, intent_id)[-MAX_INTENTS:])


def _installed(document: Document, target: Target) -> Document:
    """The floor of what ran here rises, and the wave that brought an image is remembered."""
    if target.rollback_floor:
        document = replaced(document, rollback_floor=target.rollback_floor)
    if target.firmware is None:
        return document
    images = [*(document.installed_by | {target.firmware.sha256: target.wave_id}).items()]
    return replaced(document, installed_by=dict(images[-MAX_INSTALLED:]))


def _bounded(text: str, most: int = MAX_EVIDENCE_BYTES) -> str:
    return text.encode(errors="replace")[:most].decode(errors="ignore")
