"""Desired state at rest: trust first, all or nothing in a transaction, believed again after a restart."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from superhub.acceptance import Acceptance
from superhub.shelf import Shelf
from superhub.sink import RegionSink
from superhub.store import RegionStore
from superhub.tracing import Tracing
from tests.conftest import TrustKeys, make_manifest
from tests.session_kit import resource
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.authorities import Authorities
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.session.frames import ResourceKey
from wavemesh.session.showing import Showing
from wavemesh.session.sqlite import SqliteResources
from wavemesh.telemetry.config import TelemetryConfig
from wavemesh.telemetry.outbox import Outbox
from wavemesh.trust.envelope import sign_statement
from wavemesh.trust.kept import KEPT_KIND, KeptReport
from wavemesh.trust.statements import HoldList, WaveClosed, WaveOrder, WaveState

if TYPE_CHECKING:
    from pathlib import Path

    from wavemesh.identity.ca import FleetCa
    from wavemesh.runtime.sqlite import Transaction
    from wavemesh.session.frames import Report, Resource

NOW = datetime.now(UTC)
REGION = "region/midwest"
STORE = f"{REGION}/store/store-208"
HOLDS, TUF, CLOSED = ResourceKey("holds", "fleet"), ResourceKey("tuf", "metadata"), ResourceKey("closed", "142")


class Rig:
    """A sink over a real database, and how often it said that something changed."""

    def __init__(self, store: RegionStore, resources: SqliteResources, acceptance: Acceptance) -> None:
        self.store = store
        self.acceptance = acceptance
        self.shelf = Shelf(REGION)
        self.changes = 0
        self.reports: list[Report] = []
        node = NodeId("test.example", REGION)
        outbox = Outbox(node, store.database, SystemClock(), TelemetryConfig())
        self.sink = RegionSink(
            store=store,
            resources=resources,
            acceptance=acceptance,
            shelf=self.shelf,
            clock=SystemClock(),
            showing=Showing(self._append),
            tracing=Tracing(node, outbox, store.database, SystemClock()),
            changed=self._changed,
        )

    def _changed(self) -> None:
        self.changes += 1

    async def _append(self, tx: Transaction, report: Report) -> int:
        self.reports.append(report)
        return len(self.reports)

    @property
    def held(self) -> set[ResourceKey]:
        return {one.key for one in self.sink.held()}


async def opened(directory: Path, ca: FleetCa, root: bytes) -> Rig:
    store = await RegionStore.open(directory / "superhub.db")
    rig = Rig(
        store, await SqliteResources.open(store.database), Acceptance(REGION, root, Authorities([ca.certificate]))
    )
    await rig.sink.restore()
    return rig


@pytest.fixture
def wanted(trust_keys: TrustKeys) -> list[Resource]:
    """What control sends, in the worst order."""
    published, _ = trust_keys.publish(make_manifest(), now=NOW)
    closed = sign_statement(WaveClosed("142", WaveState.CLOSED, NOW), [trust_keys.control])
    holds = sign_statement(HoldList(1, (), NOW), [trust_keys.control])
    return [
        resource("142", encode(closed), kind="closed"),
        resource("fleet", encode(holds), kind="holds", urgent=True),
        resource("metadata", encode(published), kind="tuf"),
    ]


async def test_trust_comes_first_whatever_the_order(
    tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys, wanted: list[Resource]
) -> None:
    rig = await opened(tmp_path, fleet_ca, trust_keys.pinned_root)
    forged = resource("143", b"\xff", kind="closed")
    try:
        [rejected] = await rig.sink.apply([*wanted, forged], [])
        assert (rejected.key, rejected.digest, rejected.gate) == (forged.key, forged.digest, "signature")
        assert rig.held == set(rig.shelf.desired(STORE)) == {HOLDS, TUF, CLOSED}
        assert rig.shelf.desired(STORE)[HOLDS].urgent
        assert rig.changes == 1
        assert await rig.sink.apply([], [CLOSED, ResourceKey("order", "unknown")]) == []
        assert rig.held == set(rig.shelf.desired(STORE)) == {HOLDS, TUF}
    finally:
        await rig.store.database.close()


async def test_after_a_restart_only_what_is_still_genuine_is_held(
    tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys, wanted: list[Resource]
) -> None:
    """What rotted on disk is neither served nor claimed to be held, so that control sends it again."""
    rig = await opened(tmp_path, fleet_ca, trust_keys.pinned_root)
    await rig.sink.apply(wanted, [])
    async with rig.store.database.transaction() as tx:
        await tx.execute("UPDATE session_resources SET content = ? WHERE type = 'closed'", (b"rot",))
    await rig.store.database.close()
    again = await opened(tmp_path, fleet_ca, trust_keys.pinned_root)
    try:
        assert again.held == set(again.shelf.desired(STORE)) == {HOLDS, TUF}
        assert again.acceptance.holds is not None
        assert await again.sink.apply([wanted[0]], []) == []
        assert again.held == {HOLDS, TUF, CLOSED}
    finally:
        await again.store.database.close()


async def test_a_cancelled_apply_leaves_disk_and_shelf_agreeing(
    tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys, wanted: list[Resource]
) -> None:
    """The session ends at any await; whatever was durable by then is served, and the rest comes again."""
    for turns in range(0, 60, 2):
        directory = tmp_path / str(turns)
        directory.mkdir()
        rig = await opened(directory, fleet_ca, trust_keys.pinned_root)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(rig.sink.apply(wanted, []))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
        assert rig.held == set(rig.shelf.desired(STORE))
        assert await rig.sink.apply([replace(one) for one in wanted], []) == []
        assert rig.held == set(rig.shelf.desired(STORE)) == {HOLDS, TUF, CLOSED}
        await rig.store.database.close()


async def test_what_is_held_is_shown_where_control_offers_less(
    tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys, wanted: list[Resource]
) -> None:
    """ADR 20: as signed, once a session; and a last word before it is taken back, for control may have forgotten it."""

    def shown() -> list[tuple[str, bytes]]:
        kept = [decode(KeptReport, report.body) for report in rig.reports]
        assert {report.kind for report in rig.reports} <= {KEPT_KIND}
        return [(one.type, one.content) for one in kept]

    def signed(name: str, kind: str, statement: Any) -> Resource:
        return resource(name, encode(sign_statement(statement, [trust_keys.control])), kind=kind)

    rig = await opened(tmp_path, fleet_ca, trust_keys.pinned_root)
    held, older = signed("fleet", "holds", HoldList(3, (), NOW)), signed("fleet", "holds", HoldList(2, (), NOW))
    order = signed("142/store-208", "order", order_of("142", 9))
    try:
        await rig.sink.apply([*wanted, held], [])
        for _ in range(2):
            [rejected] = await rig.sink.apply([older], [])
            assert rejected.gate == "replay"
        assert shown() == [("holds", held.content)]
        [rejected] = await rig.sink.apply([order], [])
        assert (rejected.key, rejected.gate) == (order.key, "replay")
        assert shown()[1:] == [("closed", wanted[0].content)]
        await rig.sink.connected()
        await rig.sink.apply([], [CLOSED])
        assert shown()[2:] == [("closed", wanted[0].content)]
        assert CLOSED not in rig.held
        await rig.sink.apply([], [order.key, ResourceKey("closed", "unknown")])
        assert len(rig.reports) == 3
    finally:
        await rig.store.database.close()


def order_of(wave_id: str, generation: int) -> WaveOrder:
    return WaveOrder(
        wave_id=wave_id,
        generation=generation,
        state=WaveState.RUNNING,
        cohort="c",
        device_class="pos-tablet",
        hardware_revision="r2",
        store=STORE,
        devices=("pos-01",),
        release="firmware-1",
        policy_digest="0" * 64,
        least_hold_epoch=0,
        issued_at=NOW,
        expires_at=NOW + timedelta(hours=1),
    )
