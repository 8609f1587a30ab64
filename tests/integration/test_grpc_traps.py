"""What grpc.aio does that one would not expect: each trap that the session's options and shape avoid, held in place.

A test here that begins to fail after an upgrade says that gRPC changed, and which rule of ``wavemesh/runtime/grpc.py``,
``session/pump.py`` or ``session/upstream.py`` may go.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc import experimental

from lab.wan import Link, LinkConfig, Mode
from tests.session_kit import (
    CHILD_OPTIONS,
    DEVICE,
    FAST,
    STORE,
    Fleet,
    MemoryRegistry,
    dialling,
    resource,
    serving,
    until,
)
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.clock import SystemClock
from wavemesh.runtime.grpc import BULK_OPTIONS, SERVER_OPTIONS, SESSION_OPTIONS, ListenError, make_channel, make_server
from wavemesh.runtime.peers import Peers
from wavemesh.session.link import DownstreamOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    Handler = Callable[[Any, Any], Awaitable[None]]

METHOD = "/t.Traps/Stream"


@pytest.fixture(scope="module")
def small_fleet(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    return Fleet.create(tmp_path_factory.mktemp("fleet"))


def _server(
    fleet: Fleet, maximum_rpcs: int, options: Sequence[tuple[str, Any]] = (), address: str = "127.0.0.1:0"
) -> tuple[grpc.aio.Server, int]:
    credentials = fleet.credentials(STORE)
    peers = Peers(credentials.authorities, SystemClock())
    return make_server(credentials, address=address, maximum_concurrent_rpcs=maximum_rpcs, peers=peers, options=options)


@asynccontextmanager
async def streaming(fleet: Fleet, handler: Handler, options: Sequence[tuple[str, Any]] = ()) -> AsyncIterator[str]:
    """A server with one raw bidirectional method, under the product's options unless overridden."""
    server, port = _server(fleet, 100, options)
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(handler)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Traps", {"Stream": method}),))
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def calling(fleet: Fleet, address: str, options: Sequence[tuple[str, Any]] = ()) -> AsyncIterator[Any]:
    """An open raw stream."""
    channel = make_channel(fleet.credentials(DEVICE), address, STORE, options)
    try:
        yield channel.stream_stream(METHOD)()
    finally:
        await channel.close()


async def echo(_: object, context: Any) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        await context.write(message)


async def _noticed_after(fleet: Fleet, child_options: Sequence[tuple[str, Any]]) -> float:
    """Seconds until a client's read() fails on a link that swallows everything."""
    async with (
        streaming(fleet, echo, [("grpc.http2.min_ping_interval_without_data_ms", 100)]) as target,
        Link(LinkConfig("l", "127.0.0.1:0", target)) as link,
        calling(fleet, link.address, child_options) as call,
    ):
        await call.write(b"x")
        assert await call.read() == b"x"
        link.set_mode(Mode.BLACKHOLE)
        started = asyncio.get_running_loop().time()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await asyncio.wait_for(call.read(), 10.0)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        return asyncio.get_running_loop().time() - started


async def test_ping_timeout_is_what_detects_a_blackholed_connection(small_fleet: Fleet) -> None:
    """``grpc.keepalive_timeout_ms`` is without effect; ``grpc.http2.ping_timeout_ms`` rules, so it must be set."""
    keepalive = [("grpc.keepalive_time_ms", 500), ("grpc.keepalive_timeout_ms", 60_000)]
    assert await _noticed_after(small_fleet, [*keepalive, ("grpc.http2.ping_timeout_ms", 500)]) < 6.0


@pytest.mark.parametrize("options", [SERVER_OPTIONS, SESSION_OPTIONS, BULK_OPTIONS])
def test_both_sides_set_all_of_the_keepalive_profile(options: list[tuple[str, Any]]) -> None:
    names = dict(options)
    assert names["grpc.http2.ping_timeout_ms"] == names["grpc.keepalive_timeout_ms"]
    assert names["grpc.http2.max_pings_without_data"] == 0
    assert (
        dict(SERVER_OPTIONS)["grpc.http2.min_ping_interval_without_data_ms"]
        < dict(SESSION_OPTIONS)["grpc.keepalive_time_ms"]
    )


async def test_a_server_with_defaults_would_close_on_our_pings(small_fleet: Fleet) -> None:
    """Hence the server's minimum interval lies below the client's."""
    strict = [("grpc.http2.min_ping_interval_without_data_ms", 300_000)]
    pings = [("grpc.keepalive_time_ms", 100)]
    async with streaming(small_fleet, echo, strict) as address, calling(small_fleet, address, pings) as call:
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            await asyncio.wait_for(call.read(), 10.0)


async def test_a_wedged_peer_is_noticed_by_the_heartbeat(small_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose loop hangs still answers HTTP/2 pings; only the application's heartbeat tells."""
    registry = MemoryRegistry()
    registry.gate = asyncio.Event()
    wedged = DownstreamOptions(replace(FAST, heartbeat_interval_s=0.2))

    async with (
        serving(small_fleet, registry, options=wedged) as parent,
        dialling(small_fleet, parent.address) as child,
    ):
        await until(lambda: "settled" in child.sink.events, child.sink)
        session = parent.downstream._seats[DEVICE.path]
        monkeypatch.setattr(session.machine, "next_frame", lambda _: None)
        await until(lambda: any("nothing heard" in event for event in child.sink.events), child.sink)


async def test_a_half_open_link_is_noticed_by_both_ends_within_seconds(small_fleet: Fleet) -> None:
    """The session's heartbeat, through a link that swallows everything; and the child is back when the link is."""
    registry = MemoryRegistry()
    async with (
        serving(small_fleet, registry) as parent,
        Link(LinkConfig("l", "127.0.0.1:0", parent.address)) as link,
        dialling(small_fleet, link.address, options=replace(CHILD_OPTIONS, connect_timeout_s=0.5)) as child,
    ):
        await until(lambda: "settled" in child.sink.events, child.sink)
        link.set_mode(Mode.BLACKHOLE)
        started = asyncio.get_running_loop().time()
        await until(lambda: "-pos-01" in registry.events and not child.upstream.is_connected, child.sink, registry)
        assert asyncio.get_running_loop().time() - started < 3.0
        child.log.append(b"said in the dark")
        link.set_mode(Mode.PASS)
        await until(lambda: registry.applied == [("event", b"said in the dark")], registry)


@pytest.mark.parametrize("end", ["cancel", "half_close", "channel_close", "stop"])
async def test_the_end_of_a_stream_looks_the_same_whatever_it_was(small_fleet: Fleet, end: str) -> None:
    """A handler reads plain EOF on cancel, reset, half-close and stop alike: EOF never means "finished"."""
    seen: list[object] = []
    begun, over = asyncio.Event(), asyncio.Event()

    async def handler(_: object, context: Any) -> None:
        try:
            while True:
                message = await context.read()
                seen.append(message)
                begun.set()
                if message is grpc.aio.EOF:
                    return
        finally:
            over.set()

    server, port = _server(small_fleet, 9)
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(handler)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Traps", {"Stream": method}),))
    await server.start()
    try:
        async with calling(small_fleet, f"127.0.0.1:{port}") as call:
            await call.write(b"x")
            await asyncio.wait_for(begun.wait(), 10)
            if end == "cancel":
                call.cancel()
            elif end == "half_close":
                await call.done_writing()
            elif end == "stop":
                await server.stop(None)
            if end != "channel_close":
                await asyncio.wait_for(over.wait(), 10)
        await asyncio.wait_for(over.wait(), 10)
    finally:
        await server.stop(None)
    assert seen == [b"x", grpc.aio.EOF]


async def test_write_returning_is_not_delivery(small_fleet: Fleet) -> None:
    """A client that reads nothing lets megabytes run ahead: only acknowledgements of the application bound it."""
    written = 0
    blocked = asyncio.Event()

    async def flood(_: object, context: Any) -> None:
        nonlocal written
        while True:
            try:
                async with asyncio.timeout(0.5):
                    await context.write(bytes(64 * 1024))
            except TimeoutError:
                blocked.set()
                return
            written += 64 * 1024

    async with streaming(small_fleet, flood) as address, calling(small_fleet, address) as call:
        await call.read()
        await asyncio.wait_for(blocked.wait(), 10)
    assert written >= 64 * 1024


async def test_the_session_lets_no_more_than_its_window_run_ahead(small_fleet: Fleet) -> None:
    """M6: at most one update per lane is unanswered, whatever the transport would take."""
    registry = MemoryRegistry()
    registry.wanted = {r.key: r for r in (resource(f"r{n}", bytes([n]) * 60_000) for n in range(50))}
    async with serving(small_fleet, registry) as parent, dialling(small_fleet, parent.address) as child:
        child.sink.gate = asyncio.Event()
        await until(lambda: "connected" in child.sink.events, child.sink)
        session = parent.downstream._seats[DEVICE.path]
        assert len(session.machine._lanes._sent) <= 1
        child.sink.gate.set()
        await until(lambda: "settled" in child.sink.events, child.sink)


async def test_a_port_is_not_shared_in_silence(small_fleet: Fleet) -> None:
    """``grpc.so_reuseport`` is on by default: a second server would take half of the first one's children."""
    async with streaming(small_fleet, echo) as address:
        with pytest.raises(ListenError, match="cannot listen"):
            _server(small_fleet, 1, address=address)
        gc.collect()


async def test_excess_calls_are_refused_and_do_not_wait(small_fleet: Fleet) -> None:
    """``maximum_concurrent_rpcs`` refuses; ``grpc.max_concurrent_streams`` would let the excess wait in silence."""
    server, port = _server(small_fleet, 1)
    method: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.Traps", {"Stream": method}),))
    await server.start()
    try:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(calling(small_fleet, f"127.0.0.1:{port}"))
            await first.write(b"x")
            assert await first.read() == b"x"
            second = await stack.enter_async_context(calling(small_fleet, f"127.0.0.1:{port}"))
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await second.read()
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    finally:
        await server.stop(None)


async def test_no_stream_is_opened_on_a_dead_server(small_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams opened on a dead channel pile up in gRPC core: the upstream waits for readiness first."""
    opened: list[object] = []
    monkeypatch.setattr("wavemesh.session.upstream.SessionServiceStub", opened.append)
    async with Link(LinkConfig("l", "127.0.0.1:0", "127.0.0.1:1")) as link:
        link.set_mode(Mode.CUT)
        async with dialling(small_fleet, link.address) as child:
            failed = asyncio.Event()
            attempt = child.upstream._attempt

            async def spied() -> Any:
                result = await attempt()
                failed.set()
                return result

            monkeypatch.setattr(child.upstream, "_attempt", spied)
            await asyncio.wait_for(failed.wait(), 10)
    assert opened == []


async def test_graceful_stop_is_quick_once_handlers_were_told(small_fleet: Fleet) -> None:
    """``stop(grace)`` alone would let idle streams wait out the whole grace."""
    registry = MemoryRegistry()
    async with serving(small_fleet, registry) as parent, dialling(small_fleet, parent.address) as child:
        await until(lambda: "settled" in child.sink.events, child.sink)
        started = asyncio.get_running_loop().time()
        await parent.downstream.drain(1.0)
        await parent.server.stop(10.0)
        assert asyncio.get_running_loop().time() - started < 2.0


async def test_handlers_end_cancelled_when_they_were_cancelled(
    small_fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Swallowing CancelledError leaks memory in gRPC core for each stream; the pump raises it again."""
    registry = MemoryRegistry()
    raised: list[type[BaseException] | None] = []
    async with serving(small_fleet, registry) as parent, dialling(small_fleet, parent.address) as child:
        await until(lambda: "settled" in child.sink.events, child.sink)
        leave = parent.downstream._leave

        async def spied(session: Any, reason: str) -> None:
            raised.append(sys.exc_info()[0])
            await leave(session, reason)

        monkeypatch.setattr(parent.downstream, "_leave", spied)
        group = parent.downstream._seats[DEVICE.path].pump._group
        assert group is not None
        group._parent_task.cancel()  # type: ignore[attr-defined]  # the handler's task, as gRPC cancels it
        await until(lambda: "-pos-01" in registry.events, registry)
        assert raised == [asyncio.CancelledError]


async def test_credentials_are_read_anew_for_each_connection(small_fleet: Fleet, tmp_path: Path) -> None:
    """Clients cannot reload certificates in a channel: each attempt makes its own."""
    registry = MemoryRegistry()
    other = DEVICE.path.replace("pos-01", "pos-02")
    async with serving(small_fleet, registry) as parent, dialling(small_fleet, parent.address) as child:
        await until(lambda: "settled" in child.sink.events, child.sink)
        child.upstream._credentials = Fleet(tmp_path, small_fleet.ca, small_fleet.issuers).credentials(
            NodeId(DEVICE.fleet, other)
        )
        parent.downstream.disconnect(DEVICE.path, "rotate")
        await until(lambda: "+pos-02" in registry.events, registry)


async def test_a_key_that_signs_elsewhere_costs_a_thread(small_fleet: Fleet) -> None:
    """A thread that is no daemon for each channel with such a key, until core lets go: the agent ends by ``os._exit``.

    What the signer raises comes through to a call, as the reason why there is no connection.
    """
    mine = small_fleet.credentials(DEVICE)
    is_there: list[bool] = []

    def sign(data: bytes, algorithm: object, _: object) -> bytes:
        assert algorithm == experimental.PrivateKeySignatureAlgorithm.ECDSA_SECP256R1_SHA256
        if not is_there[-1]:
            raise OSError("the TPM is gone")
        return mine.sign(data)

    with pytest.warns(experimental.ExperimentalApiWarning):
        credentials = experimental.ssl_channel_credentials_with_custom_signer(
            private_key_sign_fn=sign, root_certificates=mine._ca_pem, certificate_chain=mine._chain_pem
        )
    before, said = set(threading.enumerate()), []
    options = [("grpc.ssl_target_name_override", STORE.dns_name)]
    async with serving(small_fleet, MemoryRegistry()) as parent:
        for there in (False, True):
            is_there.append(there)
            async with grpc.aio.secure_channel(parent.address, credentials, options=options) as channel:
                waiting = [one for one in set(threading.enumerate()) - before if "lambda" in one.name]
                assert waiting
                assert not any(one.daemon for one in waiting)
                nothing: Any = channel.unary_unary("/t.Traps/Nothing")
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await nothing(b"")
                said.append((error.value.code(), error.value.details() or ""))
    assert said[0][0] is grpc.StatusCode.UNAVAILABLE
    assert "Exception in user function: the TPM is gone" in said[0][1]
    assert said[1][0] is grpc.StatusCode.UNIMPLEMENTED
