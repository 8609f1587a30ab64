"""What a new incarnation of the hub's log starts with (semantics, "Sessions"; M3)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from storehub.ledger import Entry
from storehub.records import Disposition, IntentRecord, IntentSource
from storehub.reportlog import HubReportLog, snapshot_of
from storehub.store import HubStore
from tests.session_kit import Fleet
from tests.storehub_kit import OPERATOR, STORE, Control, device_node
from wavemesh.codec.statements import decode, encode
from wavemesh.session.frames import Report
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import (
    DeviceOutcome,
    IntentKind,
    IntentReport,
    OperatorIntent,
    OutcomeKind,
    OutcomeReport,
    SnapshotReport,
)

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.create(tmp_path / "fleet")


async def test_outcomes_become_a_snapshot_and_intents_keep_their_number(fleet: Fleet, tmp_path: Path) -> None:
    control, pos = Control(fleet), device_node("pos-12")
    store = await HubStore.open(tmp_path / "hub.sqlite3")
    log = await HubReportLog.open(store.database, snapshot_of(store, STORE.path))
    envelope = control.intent(IntentKind.PAUSE_WAVE)
    outcome = DeviceOutcome("142", pos.path, 1, 1, OutcomeKind.UPDATED, "", "", "", "", "", "", "", NOW)
    signed = sign_as_node(outcome, fleet.credentials(pos))
    async with store.database.transaction() as tx:
        await store.merge(tx, Entry(outcome, signed, pos.uri, by_device=True, received_at=NOW))
        await log.append(tx, Report("outcome", encode(OutcomeReport((signed,)))))
        number = await log.append(tx, Report("intent", encode(IntentReport(envelope, STORE.path))))
        intent = decode(OperatorIntent, envelope.payload)
        record = IntentRecord(
            intent,
            envelope,
            OPERATOR.uri,
            IntentSource.OPERATOR,
            Disposition.APPLIED,
            NOW,
            waiting_for=("control",),
            report_number=number,
        )
        await store.put_intent(tx, record)
    old = log.incarnation
    await log.restart()
    reports = await log.read(1, 10)
    assert log.incarnation != old
    assert [report.kind for report in reports] == ["snapshot", "intent"]
    snapshot = decode(SnapshotReport, reports[0].body)
    assert (snapshot.node, snapshot.incarnation, snapshot.outcomes, snapshot.last) == (
        STORE.path,
        log.incarnation,
        (signed,),
        True,
    )
    assert store.intents["i-1"].report_number == 2
    await store.close()

    again = await HubStore.open(tmp_path / "hub.sqlite3")
    assert again.intents == {"i-1": store.intents["i-1"]}
    assert again.ledger("142")[pos.path].envelope == signed
    await again.close()
