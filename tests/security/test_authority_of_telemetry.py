"""Telemetry is believed as little as anything else: a child tells of itself and those below it, in their own traces.

At each tier, through a real session over mTLS: what may not be said is refused, is not kept, is not forwarded, and does
not hold up what may be said.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests import session_kit, storehub_kit, superhub_kit
from tests.conftest import FLEET
from tests.storehub_kit import device_node, eventually, lay_out, running, till
from tests.superhub_kit import REGION, store_id
from tests.unit.control import control_kit
from wavemesh.codec.statements import decode, encode
from wavemesh.identity.nodes import NodeId
from wavemesh.session.faults import AskFailedError
from wavemesh.session.frames import MAX_ASK_BYTES
from wavemesh.telemetry.batches import MAX_BATCH_BYTES, TelemetryBatch, TelemetryUpload, TelemetryUploadAnswer
from wavemesh.telemetry.otlp import encode as encode_spans
from wavemesh.telemetry.spans import Span, Trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import CredentialsFactory, TrustKeys
    from wavemesh.identity.ca import FleetCa
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.session.seams import Upstream
    from wavemesh.telemetry.outbox import Outbox
    from wavemesh.v1 import telemetry_pb2

NOW = datetime.now(UTC)
INCARNATION = "a" * 32


def body(node: NodeId, device: str, fleet: str | None = None) -> bytes:
    """A batch as ``node`` would encode it, about a device."""
    trace = Trace(fleet or node.fleet, "142", device)
    return encode_spans(node, [Span(trace, trace.unit("x"), trace.root(), "x", NOW, NOW)])


def lies(mine: NodeId, my_device: str, other: NodeId, other_device: str) -> list[TelemetryBatch]:
    """What ``mine`` may not say, each under numbers of its own."""
    genuine = body(other, other_device)
    said = [
        (other.path, genuine),  # genuine, but not through this child
        (mine.path, genuine),  # another node's words under the own name
        (mine.path, body(mine, other_device)),  # in another device's trace
        (mine.path, body(mine, my_device, "other.example")),  # in a trace that belongs to nobody
        (mine.path, b"\xff\xff not OTLP"),
        (f"{mine.path}x", body(mine, my_device)),
    ]
    return [TelemetryBatch(source, INCARNATION, number, data) for number, (source, data) in enumerate(said, start=1)]


async def assert_believed_by_right_alone(
    upstream: Upstream, outbox: Outbox, bad: list[TelemetryBatch], good: TelemetryBatch
) -> None:
    """Ask with all of it, good last; then with what is too large; then see what would go on."""
    await eventually(lambda: upstream.is_connected)
    before = await _kept(outbox)
    answer = decode(TelemetryUploadAnswer, await upstream.ask("telemetry", encode(TelemetryUpload((*bad, good))), 5.0))
    assert (answer.settled, answer.refused) == (len(bad) + 1, len(bad)), answer.reason
    for oversized in (_upload(good, MAX_BATCH_BYTES + 1), b"\0" * (MAX_ASK_BYTES - 1), b"\xff"):
        with pytest.raises(AskFailedError):
            await upstream.ask("telemetry", oversized, 5.0)
    assert [one for one in await _kept(outbox) if one not in before] == [good]


async def _kept(outbox: Outbox) -> tuple[TelemetryBatch, ...]:
    pending = await outbox.pending(64)
    return pending.batches if pending is not None else ()


def _upload(batch: TelemetryBatch, size: int) -> bytes:
    """An upload past its bounds, which our own codec would not write."""
    from wavemesh.v1 import telemetry_pb2 as pb

    message: telemetry_pb2.TelemetryUpload = pb.TelemetryUpload()
    message.batches.add(source=batch.source, incarnation=batch.incarnation, number=9, otlp_traces=b"x" * size)
    return message.SerializeToString()


async def test_at_a_store_hub(tmp_path: Path) -> None:
    control = storehub_kit.Control(session_kit.Fleet.create(tmp_path / "fleet"))
    mine, other = device_node("pos-01"), device_node("pos-02")
    async with (
        running(lay_out(tmp_path / "hub", control, "127.0.0.1:1")) as app,
        till(control, "pos-01", f"127.0.0.1:{app.port}") as child,
    ):
        bad = lies(mine, mine.path, other, other.path)
        good = TelemetryBatch(mine.path, INCARNATION, 9, body(mine, mine.path))
        await assert_believed_by_right_alone(child.child.upstream, app.hub.tracing.outbox, bad, good)


async def test_at_a_super_hub(tmp_path: Path, fleet_ca: FleetCa, trust_keys: TrustKeys) -> None:
    mine, other = store_id("store-20"), store_id("store-209")
    mine_below, other_below = f"{mine.path}/device/pos-01", f"{other.path}/device/pos-01"
    region = superhub_kit.Region(tmp_path, fleet_ca, trust_keys, origin_port=1)
    async with AsyncExitStack() as stack:
        region.write_hub()
        hub = await stack.enter_async_context(region.running_hub())
        dial = session_kit.dialling(cast("Any", region), f"127.0.0.1:{hub.port}", node=mine, parent=REGION)
        child = await stack.enter_async_context(dial)
        good = TelemetryBatch(mine_below, INCARNATION, 9, body(NodeId(FLEET, mine_below), mine_below))
        bad = lies(mine, mine_below, other, other_below)
        await assert_believed_by_right_alone(child.upstream, hub.outbox, bad, good)


async def test_at_control(
    tmp_path: Path, credentials: CredentialsFactory, trust_keys: TrustKeys, make_manifest: Callable[..., Any]
) -> None:
    (tmp_path / "control").mkdir()
    world = control_kit.make_world(tmp_path / "control", credentials, trust_keys, make_manifest())
    other = NodeId(control_kit.FLEET, "region/west")
    mine, mine_below = control_kit.MIDWEST, control_kit.DEVICES[0]
    async with world.serving() as served:
        fleet = cast("Any", _Credentials(world))
        async with session_kit.dialling(fleet, served.address, node=mine, parent=control_kit.CONTROL) as child:
            good = TelemetryBatch(mine_below, INCARNATION, 9, body(NodeId(mine.fleet, mine_below), mine_below))
            bad = lies(mine, mine_below, other, f"{other.path}/store/store-1/device/pos-01")
            outbox = served.control.core.tracing.outbox
            await assert_believed_by_right_alone(child.upstream, outbox, bad, good)


class _Credentials:
    """The fleet of a World, for the session kit."""

    def __init__(self, world: control_kit.World) -> None:
        self._world = world

    def credentials(self, node: NodeId) -> NodeCredentials:
        return self._world.credentials(node.path)
