"""Every RPC is admitted by its caller's certificate, and ends when that is taken back or expires. Real mTLS."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.session_kit import CHILD_OPTIONS, DEVICE, FAST, FLEET, STORE, Fleet, MemoryRegistry, dialling, until
from tests.storehub_kit import eventually
from wavemesh.artifacts.transfer import ArtifactClient, ArtifactServer
from wavemesh.errors import ForbiddenError, GateError, WavemeshError
from wavemesh.identity.ca import write_node
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import make_bulk_channel, make_channel, make_server, serve_health, set_serving
from wavemesh.runtime.peers import Peers
from wavemesh.runtime.status import error_from_status, status_in
from wavemesh.session.backoff import delay_s
from wavemesh.session.link import DownstreamOptions, SessionDownstream
from wavemesh.session.liveness import Ending, SessionEnd
from wavemesh.trust.statements import Digest, Revocation, RevocationList, RevocationReach

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence
    from pathlib import Path

    from wavemesh.identity.authorities import Authorities

SIBLING = NodeId(FLEET, f"{STORE.path}/device/pos-02")
BLOB = Digest("0" * 64, 1 << 20)
KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
ENDS_WITHIN_S = 5.0


class JumpingClock:
    """The right time but for an offset, or one that stands."""

    def __init__(self) -> None:
        self.offset = timedelta()
        self.stands_at: datetime | None = None

    def now(self) -> datetime:
        return self.stands_at or datetime.now(UTC) + self.offset

    def monotonic(self) -> float:
        return SystemClock().monotonic()


class Stalled:
    """A blob source whose reads begin and never end, and a raw service whose calls do."""

    def __init__(self) -> None:
        self.reached = 0

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        return digests

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        async def pieces() -> AsyncGenerator[bytes, None]:
            yield b"first"
            self.reached += 1
            await asyncio.Event().wait()

        return pieces()

    async def wait(self, _: Any, context: Any) -> bytes:
        del context
        self.reached += 1
        await asyncio.Event().wait()
        return b""


@dataclass(slots=True)
class Served:
    """One store hub with all kinds of calls."""

    fleet: Fleet
    authorities: Authorities
    address: str
    clock: JumpingClock
    stalled: Stalled
    registry: MemoryRegistry
    epoch: int = 0

    def take_back(self, *nodes: NodeId, before: datetime | None = None) -> None:
        """Every certificate of these nodes that was issued till now."""
        self.epoch += 1
        entries = (Revocation(n.path, RevocationReach.NODE, before or self.clock.now(), "stolen") for n in nodes)
        self.authorities.take(RevocationList(self.epoch, tuple(entries), datetime.now(UTC)))

    def channel(self, node: NodeId) -> grpc.aio.Channel:
        return make_channel(self.fleet.credentials(node), self.address, STORE)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet.create(tmp_path / "fleet")


@asynccontextmanager
async def serving(fleet: Fleet) -> AsyncIterator[Served]:
    credentials, clock, stalled, registry = fleet.credentials(STORE), JumpingClock(), Stalled(), MemoryRegistry()
    peers = Peers(credentials.authorities, clock)
    server, port = make_server(credentials, address="127.0.0.1:0", maximum_concurrent_rpcs=99, peers=peers)
    SessionDownstream(STORE, registry, clock, peers, DownstreamOptions(FAST)).add_to(server)
    ArtifactServer(STORE, stalled, peers).add_to(server)
    handlers = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(stalled.wait) for kind in KINDS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.New", handlers),))
    await set_serving(serve_health(server, ["t.New"]), ["t.New"])
    await server.start()
    try:
        yield Served(fleet, credentials.authorities, f"127.0.0.1:{port}", clock, stalled, registry)
    finally:
        await server.stop(None)


def start(channel: grpc.aio.Channel, kind: str) -> Any:
    """Make a call of that kind; it goes on until it is ended."""
    method = getattr(channel, kind)(f"/t.New/{kind}")
    return method(b"") if kind.startswith("unary") else method()


async def end_of(made: Any) -> WavemeshError | None:
    """How the other side ended a call."""
    async with asyncio.timeout(ENDS_WITHIN_S):
        code = await made.code()
        if code is grpc.StatusCode.OK:
            return None
        return error_from_status(code, await made.details() or "", status_in(await made.trailing_metadata()))


async def call(channel: grpc.aio.Channel, kind: str = "unary_unary") -> WavemeshError | None:
    """Make a call and wait for its end."""
    return await end_of(start(channel, kind))


def reason(error: WavemeshError | None) -> str | None:
    return error.details.get("reason", error.reason) if error is not None else None


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_of_any_new_service_ends_when_its_caller_is_revoked(fleet: Fleet, kind: str) -> None:
    """The service knows nothing of it; its other callers are left alone."""
    async with serving(fleet) as served, served.channel(DEVICE) as mine, served.channel(SIBLING) as other:
        revoked, kept = start(mine, kind), start(other, kind)
        await eventually(lambda: served.stalled.reached == 2)
        served.take_back(DEVICE)
        error = await end_of(revoked)
        assert isinstance(error, ForbiddenError)
        assert reason(error) == "REVOKED"
        assert "stolen" in str(error)
        assert not kept.done()
        again = await call(mine, kind)
        assert reason(again) == "REVOKED", "nor is it let in again"
        assert served.stalled.reached == 2
        kept.cancel()


async def test_a_bulk_read_ends(fleet: Fleet) -> None:
    async with serving(fleet) as served:
        client = ArtifactClient(lambda: make_bulk_channel(fleet.credentials(DEVICE), served.address, STORE))
        pieces = client.read(BLOB)
        assert bytes(await anext(pieces)) == b"first"
        served.take_back(DEVICE)
        with pytest.raises(ForbiddenError, match="taken back"):
            await asyncio.wait_for(anext(pieces), ENDS_WITHIN_S)


async def test_a_session_ends_and_its_child_stays_away(fleet: Fleet) -> None:
    """One refusal and no hot loop; its siblings stay."""
    async with (
        serving(fleet) as served,
        dialling(fleet, served.address) as child,
        dialling(fleet, served.address, node=SIBLING) as other,
    ):
        registry = served.registry
        await eventually(lambda: child.upstream.is_connected and other.upstream.is_connected)
        began = SystemClock().monotonic()
        served.take_back(DEVICE)
        await until(lambda: "-pos-01" in registry.events, registry, within_s=ENDS_WITHIN_S)
        await until(lambda: "disconnected" in child.sink.events[-1], child.sink, within_s=ENDS_WITHIN_S)
        print(f"a revoked child's session ended after {SystemClock().monotonic() - began:.3f} s")  # noqa: T201  # pytest -s shows it
        await eventually(lambda: "REVOKED" in child.upstream.refusal)
        other.log.append(b"goes on")
        other.upstream.wake()
        await until(lambda: registry.applied, registry)
        assert sorted(registry.events) == ["+pos-01", "+pos-02", "-pos-01"]
        assert (
            delay_s(SessionEnd(Ending.REVOKED, ""), 0, 0.0, CHILD_OPTIONS, min) >= CHILD_OPTIONS.revoked_retry_s >= 60
        )


async def test_a_node_enrolled_again_gets_through(fleet: Fleet) -> None:
    """Its new certificate begins when the revocation says, not a second earlier."""
    async with serving(fleet) as served:
        cut_off = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=10)
        served.take_back(DEVICE, before=cut_off)
        issuer, end = fleet.issuers.issuer(DEVICE.path), datetime.now(UTC) + timedelta(days=1)
        early, right = (
            write_node(fleet.directory / f"from-{start.second}", issuer, DEVICE, not_before=start, not_after=end)
            for start in (cut_off - timedelta(seconds=1), cut_off)
        )
        async with make_channel(early, served.address, STORE) as channel:
            assert reason(await call(channel, "unary_unary")) == "REVOKED"
        async with make_channel(right, served.address, STORE) as channel:
            made = start(channel, "unary_unary")
            await eventually(lambda: served.stalled.reached)
            made.cancel()


async def test_no_call_outlives_the_certificate_it_was_made_with(fleet: Fleet) -> None:
    """Waited for on the monotonic clock, counted from the call's beginning."""
    async with serving(fleet) as served:
        now = datetime.now(UTC)
        issuer, end = fleet.issuers.issuer(DEVICE.path), now + timedelta(minutes=10)
        short = write_node(
            fleet.directory / "short", issuer, DEVICE, not_before=now - timedelta(hours=1), not_after=end
        )
        async with make_channel(short, served.address, STORE) as channel, served.channel(SIBLING) as other:
            served.clock.stands_at = end - timedelta(seconds=1)
            made = start(channel, "stream_stream")
            kept = start(other, "stream_stream")
            await eventually(lambda: served.stalled.reached == 2)
            error = await end_of(made)
            assert isinstance(error, ForbiddenError)
            assert "expired at" in str(error)
            assert not kept.done()
            kept.cancel()


@pytest.mark.parametrize(("years", "revoked", "kept"), [(1, DEVICE, SIBLING), (-1, SIBLING, DEVICE)])
async def test_a_clock_that_jumps_shuts_nobody_out_for_longer_than_it_is_wrong(
    fleet: Fleet, years: int, revoked: NodeId, kept: NodeId
) -> None:
    """Open streams stay, a revocation ends those it hits, new calls wait until the clock is right; nothing remains."""
    async with serving(fleet) as served, served.channel(revoked) as one, served.channel(kept) as two:
        hit, missed = (start(channel, "stream_stream") for channel in (one, two))
        await eventually(lambda: served.stalled.reached == 2)
        served.clock.offset = timedelta(days=365 * years)
        refused = await call(two, "unary_unary")
        assert isinstance(refused, ForbiddenError)
        assert reason(refused) == "FORBIDDEN"
        assert not hit.done()
        served.take_back(revoked, before=datetime.now(UTC))
        assert reason(await end_of(hit)) == "REVOKED"
        assert not missed.done()
        served.clock.offset = timedelta()
        again = start(two, "unary_unary")
        await eventually(lambda: served.stalled.reached == 3)
        assert reason(await call(one, "unary_unary")) == "REVOKED"
        again.cancel()
        missed.cancel()


async def test_an_older_list_is_refused(fleet: Fleet) -> None:
    async with serving(fleet) as served:
        served.take_back(DEVICE)
        held = served.authorities.revocations
        served.epoch = -1
        with pytest.raises(GateError) as refusal:
            served.take_back()
        assert refusal.value.gate == "replay"
        assert served.authorities.revocations is held


async def test_health_says_nothing_of_the_fleet_and_is_for_everybody(fleet: Fleet) -> None:
    async with serving(fleet) as served, served.channel(DEVICE) as channel:
        served.take_back(DEVICE)
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="t.New"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_service_whose_server_has_no_guard_is_told_nobody(fleet: Fleet) -> None:
    peers = Peers(fleet.credentials(STORE).authorities, SystemClock())
    with pytest.raises(RuntimeError, match="not admitted"):
        peers.of(object())  # type: ignore[arg-type]  # a context that no guard has seen
