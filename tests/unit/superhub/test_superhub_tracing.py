"""An order's way through the super hub is told once: by the store's verdict, or by what the store says it holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from superhub.store import RegionStore
from superhub.tracing import Tracing
from tests.session_kit import resource
from wavemesh.codec.statements import encode
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.session.frames import HeldResource, Rejection
from wavemesh.telemetry.config import TelemetryConfig
from wavemesh.telemetry.outbox import Outbox
from wavemesh.telemetry.spans import Trace
from wavemesh.trust.envelope import sign_statement
from wavemesh.trust.statements import WaveOrder, WaveState

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import TrustKeys
    from wavemesh.session.frames import Resource
    from wavemesh.telemetry.otlp import ShownSpan

REGION = NodeId("test.example", "region/midwest")
STORE = NodeId("test.example", "region/midwest/store/store-208")
DEVICE = f"{STORE.path}/device/pos-01"
NOW = datetime.now(UTC)


def order(keys: TrustKeys, generation: int) -> Resource:
    said = WaveOrder(
        "142",
        generation,
        WaveState.RUNNING,
        "retail",
        "pos",
        "r2",
        STORE.path,
        ("pos-01",),
        "firmware-1",
        "0" * 64,
        1,
        NOW,
        NOW + timedelta(hours=1),
    )
    return resource(f"142/{STORE.name}", encode(sign_statement(said, [keys.control])), kind="order")


def held(one: Resource) -> HeldResource:
    return HeldResource(one.key, one.version, one.digest)


async def test_a_relay_is_told_once(tmp_path: Path, trust_keys: TrustKeys) -> None:
    store = await RegionStore.open(tmp_path / "superhub.db")
    outbox = Outbox(REGION, store.database, SystemClock(), TelemetryConfig())
    tracing = Tracing(REGION, outbox, store.database, SystemClock())
    first, second, third = (order(trust_keys, generation) for generation in (1, 2, 3))

    async def told() -> list[ShownSpan]:
        return await outbox.trace(Trace(REGION.fleet, "142", DEVICE).trace_id)

    tracing.restored(first)
    await tracing.connected(STORE, [held(first)])  # told before the restart or not: nobody knows
    assert await told() == []
    tracing.held(second)
    await tracing.connected(STORE, [held(first)])  # it has the old one still
    assert await told() == []
    await tracing.connected(STORE, [held(second)])  # its verdict was lost with the session
    await tracing.relayed(STORE, [second], ())
    pending = await outbox.pending(64)
    assert pending is not None
    assert len(pending.batches) == 1
    [span] = await told()
    assert (span.name, span.attributes, span.error) == ("superhub.order", {"wavemesh.generation": "2"}, "")
    tracing.held(third)
    await tracing.relayed(STORE, (), [Rejection(third.key, third.digest, "signature", "it does not verify")])
    [refused] = [one for one in await told() if one != span]
    assert (refused.gate, refused.error) == ("signature", "signature: it does not verify")
    await store.database.close()
