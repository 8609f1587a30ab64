"""The outbox to an OTLP gRPC receiver that is away, refuses, is slow to be believed: nothing lost, nothing doubled."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no types
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.otlp_receiver import Receiver, receiving
from wavemesh.errors import LinkDownError
from wavemesh.identity.ca import FleetCa, write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.sqlite import Database
from wavemesh.runtime.status import STATUS_KEY
from wavemesh.telemetry import shipping
from wavemesh.telemetry.config import TelemetryConfig
from wavemesh.telemetry.export import ReceiverError, ToReceiver, ship, way_for
from wavemesh.telemetry.outbox import TABLES, Outbox
from wavemesh.telemetry.spans import Span, Trace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from wavemesh.telemetry.batches import Pending

STORE = NodeId("test.example", "region/midwest/store/store-209")
TRACE = Trace(STORE.fleet, "142", f"{STORE.path}/device/pos-17")
NOW = datetime(2026, 11, 26, 22, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "BACKOFF_BASE_S", 0.05)
    monkeypatch.setattr(shipping, "BACKOFF_CAP_S", 0.2)


class Node:
    """An outbox that ships to a receiver."""

    def __init__(self, database: Database, outbox: Outbox) -> None:
        self.database, self.outbox = database, outbox

    async def record(self, *names: str) -> None:
        spans = [Span(TRACE, TRACE.unit(name), TRACE.root(), name, NOW, NOW + timedelta(seconds=1)) for name in names]
        for span in spans:
            async with self.database.transaction() as tx:
                await self.outbox.record(tx, [span])

    async def only(self, name: str) -> Pending:
        """One span, recorded and pending."""
        await self.record(name)
        pending = await self.outbox.pending(1)
        assert pending is not None
        return pending

    async def until_all_is_sent(self) -> None:
        while await self.outbox.pending(1) is not None:  # noqa: ASYNC110  # a database has no event
            await asyncio.sleep(0.01)


@asynccontextmanager
async def shipped(path: Path, config: TelemetryConfig) -> AsyncIterator[Node]:
    database = await Database.open(path / "hub.sqlite3", (TABLES,))
    outbox = Outbox(STORE, database, SystemClock(), config)
    await outbox.load()
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(ship(outbox, way_for(config, None, None), random.Random(7)))
            yield Node(database, outbox)
            task.cancel()
    finally:
        await database.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the receiver lives in another thread
        await asyncio.sleep(0.01)


def names(receiver: Receiver) -> list[str]:
    return sorted(span.name for span in receiver.spans(TRACE.trace_id).values())


async def test_a_receiver_that_is_away_gets_everything_once_when_it_is_back(tmp_path: Path) -> None:
    receiver = Receiver()
    with receiving(receiver):
        async with shipped(tmp_path, TelemetryConfig(otlp_endpoint=receiver.endpoint)) as node:
            await node.record("a", "b")
            await node.until_all_is_sent()
    async with shipped(tmp_path, TelemetryConfig(otlp_endpoint=receiver.endpoint)) as node:
        await node.record("c", "d")
        assert await node.outbox.pending(8) is not None
    async with shipped(tmp_path, TelemetryConfig(otlp_endpoint=receiver.endpoint)) as node:
        await node.record("e")
        with receiving(receiver):
            await node.until_all_is_sent()
            await node.record("f")
            await node.until_all_is_sent()
    assert names(receiver) == ["a", "b", "c", "d", "e", "f"]
    said = [span.name for body in receiver.bodies for span in Receiver(bodies=[body]).spans(TRACE.trace_id).values()]
    assert sorted(said) == ["a", "b", "c", "d", "e", "f"]


async def test_an_answer_that_is_lost_sends_the_same_spans_again_and_ids_tell(tmp_path: Path) -> None:
    receiver = Receiver()
    lost: list[bytes] = []

    def takes_it_and_fails(body: bytes) -> tuple[grpc.StatusCode, str] | None:
        if lost:
            return None
        lost.append(body)
        receiver.bodies.append(body)
        return grpc.StatusCode.UNAVAILABLE, "the answer is lost"

    receiver.refuses = takes_it_and_fails
    with receiving(receiver):
        async with shipped(tmp_path, TelemetryConfig(otlp_endpoint=receiver.endpoint)) as node:
            await node.record("a")
            await node.until_all_is_sent()
    assert receiver.bodies == [lost[0], lost[0]]
    assert names(receiver) == ["a"]


async def test_a_batch_that_the_receiver_finds_bad_does_not_hold_up_the_others(tmp_path: Path) -> None:
    receiver = Receiver()
    receiver.refuses = lambda body: (grpc.StatusCode.INVALID_ARGUMENT, "bad") if b"poison" in body else None
    async with shipped(tmp_path, TelemetryConfig(otlp_endpoint="")) as node:
        await node.record("a", "poison", "b")
    with receiving(receiver):
        config = TelemetryConfig(otlp_endpoint=receiver.endpoint)
        async with shipped(tmp_path, config) as node:
            await node.until_all_is_sent()
    assert names(receiver) == ["a", "b"]


async def test_a_receiver_that_asks_for_patience_gets_it(tmp_path: Path) -> None:
    receiver, asked = Receiver(), list[float]()
    status = status_pb2.Status(code=14, message="later")
    delay = Duration()
    delay.FromMilliseconds(700)
    status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    receiver.trailing = ((STATUS_KEY, status.SerializeToString()),)

    def later(_: bytes) -> tuple[grpc.StatusCode, str] | None:
        asked.append(asyncio.get_running_loop().time())
        return (grpc.StatusCode.UNAVAILABLE, "later") if len(asked) == 1 else None

    receiver.refuses = later
    with receiving(receiver):
        async with shipped(tmp_path, TelemetryConfig(otlp_endpoint=receiver.endpoint)) as node:
            await node.record("a")
            await node.until_all_is_sent()
    assert asked[1] - asked[0] >= 0.7
    assert names(receiver) == ["a"]


async def test_spans_that_a_receiver_rejects_in_part_are_told_and_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    receiver = Receiver()
    receiver.answer = ExportTraceServiceResponse()
    receiver.answer.partial_success.rejected_spans = 1
    receiver.answer.partial_success.error_message = "too old"
    with receiving(receiver):
        async with shipped(tmp_path, TelemetryConfig(otlp_endpoint=receiver.endpoint)) as node:
            await node.record("a")
            await node.until_all_is_sent()
    assert len(receiver.bodies) == 1
    assert "rejected 1 spans: too old" in caplog.text


async def test_over_tls_the_receiver_must_be_the_one_of_the_ca_file(tmp_path: Path, fleet_ca: FleetCa) -> None:
    now, identity = datetime.now(UTC), tmp_path / "identity"
    write_node(
        identity,
        fleet_ca,
        NodeId(STORE.fleet, "control/collector"),
        not_before=now - timedelta(hours=1),
        not_after=now + timedelta(days=1),
        ip_addresses=[IPv4Address("127.0.0.1")],
    )
    pair = (identity / "node.key").read_bytes(), (identity / "node.crt").read_bytes()
    receiver = Receiver()
    with receiving(receiver, grpc.ssl_server_credentials([pair])):
        endpoint = f"https://127.0.0.1:{receiver.port}"
        stranger = TelemetryConfig(otlp_endpoint=endpoint)
        async with shipped(tmp_path, stranger) as node:
            with pytest.raises(LinkDownError):
                await ToReceiver(stranger).send(await node.only("a"))
        trusting = TelemetryConfig(otlp_endpoint=endpoint, otlp_ca_file=identity / "ca.crt")
        assert receiver.bodies == []
        async with shipped(tmp_path, trusting) as node:
            await node.until_all_is_sent()
    assert names(receiver) == ["a"]
    with pytest.raises(ReceiverError, match=r"nowhere\.crt"):
        ToReceiver(TelemetryConfig(otlp_endpoint=endpoint, otlp_ca_file=tmp_path / "nowhere.crt"))
