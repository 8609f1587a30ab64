"""Control applies what super hubs report: once, and nothing is thrown away that can still be believed (M3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from control.app import recovery_of
from control.reports import Reports
from tests.unit.control.control_kit import CONTROL, DEVICES, MIDWEST, STORES, World, make_world, outcome
from wavemesh.codec.statements import encode
from wavemesh.runtime.clock import SystemClock
from wavemesh.session.frames import Report
from wavemesh.trust.envelope import EarlySignatureError
from wavemesh.trust.statements import OutcomeKind, OutcomeReport, SnapshotReport
from wavemesh.v1 import operator_pb2

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from control.app import Control
    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.runtime.clock import Clock


@pytest.fixture
def world(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> World:
    directory = tmp_path / "control"
    directory.mkdir()
    return make_world(directory, credentials, trust_keys, make_manifest())


def reports_of(world: World, control: Control, clock: Clock) -> Reports:
    core = control.core
    return Reports(
        database=core.database,
        waves=core.waves,
        intents=core.intents,
        revocations=core.revocations,
        fleet=core.fleet,
        enrolments=core.enrolments,
        recovery=recovery_of(core),
        authorities=world.credentials(CONTROL.path).authorities,
        clock=clock,
        tracing=core.tracing,
    )


class ClockBehind(SystemClock):
    """A month behind."""

    def now(self) -> datetime:
        return datetime.now(UTC) - timedelta(days=30)


async def test_reports_below_the_cursor_are_passed_over(world: World) -> None:
    """M3: a batch that overlaps what was applied adds only what is new; the cursor is that of the incarnation."""
    async with world.serving() as served, served.calling() as stub:
        reports = reports_of(world, served.control, SystemClock())
        gossip = [Report("gossip", b"")] * 3
        await reports.apply(MIDWEST, "one", 1, gossip)
        await reports.apply(MIDWEST, "one", 2, gossip)
        assert [await reports.cursor(MIDWEST, name) for name in ("one", "two")] == [4, 0]
        audit = await stub.ListAudit(operator_pb2.ListAuditRequest(page_size=1000))
        assert sum(entry.action == "report.refused" for entry in audit.entries) == 4
        await reports.apply(MIDWEST, "two", 1, gossip)
        assert [await reports.cursor(MIDWEST, name) for name in ("one", "two")] == [4, 3]


async def test_a_clock_that_is_behind_throws_no_outcome_away(world: World) -> None:
    """M3: by it the device's certificate is not valid yet; the report is neither applied nor acknowledged."""
    async with world.serving() as served:
        reports = reports_of(world, served.control, ClockBehind())
        envelope = outcome(world, DEVICES[0], OutcomeKind.UPDATED)
        snapshot = SnapshotReport(STORES[0], "one", (envelope,), last=True)
        for report in (Report("outcome", encode(OutcomeReport((envelope,)))), Report("snapshot", encode(snapshot))):
            with pytest.raises(EarlySignatureError):
                await reports.apply(MIDWEST, "one", 1, [report])
        assert await reports.cursor(MIDWEST, "one") == 0
