"""Takes the reports of the stores: verifies them, merges them, and sends up what is news.

Rules. Effect, own log and the child's cursor move in one transaction, so a report counts exactly once, whatever breaks
(S3). Outcomes are verified one by one: signed by the device or its store's hub, about a device of that store. Intents
and events go up once by their id; snapshots go up whole, as control waits for them; words of control that a store shows
go up once a session with control, which verifies them itself. A report that cannot be believed is
told to control as an event and then counts as taken, for a store that repeats it for ever would be stuck behind it; but
one that is signed with a certificate not valid yet ends the session and is told again, for then our clock is behind.
Verifying runs in a thread: a store that returns from a long outage brings thousands of signatures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from superhub.rollup import Heard, news
from wavemesh.artifacts.digests import in_thread
from wavemesh.codec.statements import decode, encode
from wavemesh.errors import PeerError
from wavemesh.identity.nodes import Role, is_within
from wavemesh.outcomes import rank_of
from wavemesh.session.frames import MAX_REPORT_BYTES, Report, ResourceKey
from wavemesh.trust.envelope import EarlySignatureError, SignatureGateError, verify_node
from wavemesh.trust.kept import KEPT_KIND, KeptReport
from wavemesh.trust.statements import (
    DeviceOutcome,
    Envelope,
    EventReport,
    IntentCancellation,
    IntentReport,
    OperatorIntent,
    OutcomeReport,
    SnapshotReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime

    from superhub.events import Events
    from superhub.store import RegionStore
    from superhub.tracing import Tracing
    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.clock import Clock
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.session.showing import Showing
    from wavemesh.session.sqlite import SqliteCursors, SqliteReportLog

_CHUNK_BYTES = MAX_REPORT_BYTES - 4096
_FRAMING_BYTES = 16
CANCELLATION_KIND = "intent-cancellation"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Verified outcomes of a report, and why others of it were refused."""

    heard: tuple[Heard, ...]
    refused: tuple[str, ...]
    snapshot: SnapshotReport | None = None


@dataclass(frozen=True, slots=True)
class ToldOnce:
    """A verified intent or event: goes up once by its id, in the place of what it takes back if that is still here."""

    id: str
    report: Report
    replaces: Report | None = None

    @property
    def kind(self) -> str:
        """What the id is one of."""
        return self.report.kind if self.replaces is None else CANCELLATION_KIND


@dataclass(frozen=True, slots=True)
class Kept:
    """A word of control that a store holds and this region, or control itself, seems to have forgotten."""

    key: ResourceKey
    content: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A report that cannot be believed."""

    reason: str


Judged: TypeAlias = Outcomes | ToldOnce | Kept | Refused


class Intake:
    """The reports of all stores of one region."""

    def __init__(
        self,
        *,
        store: RegionStore,
        log: SqliteReportLog,
        cursors: SqliteCursors,
        events: Events,
        authorities: Authorities,
        clock: Clock,
        tracing: Tracing,
        showing: Showing,
        appended: Callable[[], None],
    ) -> None:
        """``appended`` is called when reports are on disk and may go up."""
        self._store = store
        self._log = log
        self._cursors = cursors
        self._events = events
        self._authorities = authorities
        self._clock = clock
        self._tracing = tracing
        self._appended = appended
        self._showing = showing

    async def apply(self, child: NodeId, incarnation: str, first_number: int, reports: Sequence[Report]) -> None:
        """Apply contiguous reports of a child and move its cursor behind them, in one transaction."""
        judged = await in_thread(self._judge_all, child, reports, self._clock.now())
        async with self._store.database.transaction() as tx:
            await self._merge(tx, [one for one in judged if isinstance(one, Outcomes)])
            for one in judged:
                if isinstance(one, ToldOnce) and await self._store.is_first(tx, one.kind, one.id):
                    if one.replaces is not None:
                        await self._log.replace(tx, one.replaces, one.report)
                    await self._log.append(tx, one.report)
                elif isinstance(one, Kept):
                    await self._showing.show(tx, one.key, one.content)
            for reason in _refusals(judged):
                await self._events.append_once(tx, "report-refused", child.path, reason, about=reason)
            await self._cursors.advance(tx, child.path, incarnation, first_number + len(reports) - 1)
            tx.on_commit(self._appended)

    async def _merge(self, tx: Transaction, parts: Sequence[Outcomes]) -> None:
        """Put what is news among outcomes into the store and into the log: snapshots whole, the others together."""
        known = await self._store.ranks(tx, {one.key for part in parts for one in part.heard})
        for part in parts:
            if part.snapshot is None:
                continue
            fresh = news(part.heard, known)
            known |= {one.key: one.rank for one in fresh}
            await self._store.put_outcomes(tx, fresh)
            await self._tracing.merged(tx, fresh)
            believed = replace(part.snapshot, outcomes=tuple(one.envelope for one in part.heard))
            await self._log.append(tx, Report("snapshot", encode(believed)))
        fresh = news((one for part in parts if part.snapshot is None for one in part.heard), known)
        await self._store.put_outcomes(tx, fresh)
        await self._tracing.merged(tx, fresh)
        for report in _outcome_reports(fresh):
            await self._log.append(tx, report)

    # -- judging, in a thread ---------------------------------------------------------------------------------------

    def _judge_all(self, child: NodeId, reports: Sequence[Report], now: datetime) -> list[Judged]:
        return [self._judge(child, report, now) for report in reports]

    def _judge(self, child: NodeId, report: Report, now: datetime) -> Judged:
        try:
            match report.kind:
                case "outcome":
                    return self._outcomes(child, decode(OutcomeReport, report.body).outcomes, now)
                case "snapshot":
                    snapshot = decode(SnapshotReport, report.body)
                    _check_within(snapshot.node, child)
                    return replace(self._outcomes(child, snapshot.outcomes, now), snapshot=snapshot)
                case "intent":
                    body = decode(IntentReport, report.body)
                    _check_within(body.via, child)
                    _, intent = verify_node(body.intent, OperatorIntent, self._authorities, now, Role.OPERATOR)
                    return self._intent(report, body, intent.intent_id, now)
                case _:
                    return self._judge_other(child, report)
        except EarlySignatureError:
            raise  # our clock is behind: the session ends, and it is told again
        except PeerError as error:
            return Refused(f"{report.kind}: {error}")

    def _judge_other(self, child: NodeId, report: Report) -> Judged:
        """What nobody signed, or control alone can judge."""
        match report.kind:
            case str() if report.kind == KEPT_KIND:
                kept = decode(KeptReport, report.body)
                return Kept(ResourceKey(kept.type, kept.name), kept.content)
            case "event":
                event = decode(EventReport, report.body)
                _check_within(event.node, child)
                return ToldOnce(event.event_id, report)
            case _:
                return Refused(f"reports of kind {report.kind[:100]!r} are not known here")

    def _intent(self, report: Report, body: IntentReport, intent_id: str, now: datetime) -> ToldOnce:
        """An intent, or one taken back at its hub: control shall not act on what still waits here to go up."""
        if body.cancellation is None:
            return ToldOnce(intent_id, report)
        _, word = verify_node(body.cancellation, IntentCancellation, self._authorities, now, Role.OPERATOR)
        if word.intent_id != intent_id:
            msg = f"cancellation of {word.intent_id!r} with intent {intent_id!r}"
            raise SignatureGateError(msg)
        before = Report("intent", encode(replace(body, cancellation=None)))
        return ToldOnce(intent_id, report, before)

    def _outcomes(self, child: NodeId, envelopes: Iterable[Envelope], now: datetime) -> Outcomes:
        heard: list[Heard] = []
        refused: list[str] = []
        for envelope in envelopes:
            try:
                heard.append(self._hear(child, envelope, now))
            except EarlySignatureError:
                raise
            except PeerError as error:
                refused.append(f"outcome: {error}")
        return Outcomes(tuple(heard), tuple(refused))

    def _hear(self, child: NodeId, envelope: Envelope, now: datetime) -> Heard:
        signer, outcome = verify_node(envelope, DeviceOutcome, self._authorities, now)
        _check_within(outcome.device, child)
        _check_within(signer.path, child)
        return Heard(outcome, rank_of(outcome, envelope, by_device=signer.role is Role.DEVICE), envelope)


def _check_within(path: str, child: NodeId) -> None:
    if not is_within(path, child.path):
        msg = f"{child.path} speaks for {path[:200]!r}, which is not below it"
        raise SignatureGateError(msg)


def _refusals(judged: Iterable[Judged]) -> list[str]:
    reasons: list[str] = []
    for one in judged:
        if isinstance(one, Refused):
            reasons.append(one.reason)
        elif isinstance(one, Outcomes):
            reasons.extend(one.refused)
    return reasons


def _outcome_reports(fresh: Iterable[Heard]) -> list[Report]:
    """As few reports as hold the envelopes."""
    chunks: list[list[Envelope]] = []
    room = 0
    for one in fresh:
        size = len(encode(one.envelope)) + _FRAMING_BYTES
        if size > room:
            chunks.append([])
            room = _CHUNK_BYTES
        chunks[-1].append(one.envelope)
        room -= size
    return [Report("outcome", encode(OutcomeReport(tuple(chunk)))) for chunk in chunks]
