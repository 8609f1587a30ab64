"""gRPC servers and channels: mutual TLS, the keepalive profile and message bounds. Who a peer is: ``peers.py``.

Rules: every port asks for a client certificate of the fleet CA; a client accepts only the one peer it names; sessions
and bulk transfers never share a connection. grpcio 1.85 facts the options rest on, each with a regression test in
``tests/integration/test_grpc_traps.py``: ``grpc.keepalive_timeout_ms`` alone is without effect, so
``grpc.http2.ping_timeout_ms`` is set beside it; without ``max_pings_without_data=0`` pings stop on an idle stream; a
server whose minimum ping interval is above the client's interval closes the connection for pinging too much;
``grpc.so_reuseport`` would let a second server share a port in silence.
"""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from wavemesh.errors import LocalError
from wavemesh.session.frames import MAX_FRAME_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from grpc_health.v1 import health

    from wavemesh.identity.credentials import Credentials
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.peers import Peers

T = TypeVar("T")
Options = list[tuple[str, Any]]

KEEPALIVE_CLIENT_MS = 30_000
KEEPALIVE_SERVER_MS = 60_000
PING_TIMEOUT_MS = 10_000
MIN_PING_INTERVAL_MS = 10_000
HANDSHAKE_MS = 20_000
WINDOW_BYTES = 64 * 1024

# Objects made before the collector looks for cycles; Python's default is 700. A session is some hundreds of objects
# that live for days: while many open, each look walks over all of them again, measured at a tenth of opening's CPU.
YOUNG_OBJECTS = 20_000

# A frame at its bound plus the envelope gRPC and protobuf put around it.
_MAX_MESSAGE_BYTES = MAX_FRAME_BYTES + 64 * 1024

_KEEPALIVE: Options = [
    ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
]
_MESSAGES: Options = [
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
]
# What may be on the way to one that does not read: gRPC by itself lets it grow to 6 MiB a stream, at whose end it sits
# in this process's memory. No bulk comes this way; a session's frames are small and answered.
_WINDOW: Options = [("grpc.http2.lookahead_bytes", WINDOW_BYTES), ("grpc.http2.bdp_probe", 0)]
SERVER_OPTIONS: Options = [
    *_KEEPALIVE,
    *_MESSAGES,
    *_WINDOW,
    ("grpc.keepalive_time_ms", KEEPALIVE_SERVER_MS),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
    ("grpc.so_reuseport", 0),
    # Whoever connects and never greets would else hold a place among the connections for two minutes.
    ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
]
SESSION_OPTIONS: Options = [
    *_KEEPALIVE,
    *_MESSAGES,
    *_WINDOW,
    ("grpc.keepalive_time_ms", KEEPALIVE_CLIENT_MS),
    # A session resumes by itself; a stream retried below it would start in the middle.
    ("grpc.enable_retries", 0),
    # Two channels with equal options would share one connection, and bulk bytes would delay a halt.
    ("grpc.use_local_subchannel_pool", 1),
]
BULK_OPTIONS: Options = [*_KEEPALIVE, *_MESSAGES, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
# Beyond the message that is being read, a device lets little be on its way: what has come into its buffers when a link
# breaks, gRPC throws away with the stream. Round trips in a store are short; a WAN has a window that grows with them.
LAN_BULK: Options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16 * 1024)]


class ListenError(LocalError):
    """The address to listen at is taken, malformed or not ours."""

    reason = "LISTEN"


def make_server(
    credentials: Credentials,
    *,
    address: str,
    maximum_concurrent_rpcs: int,
    peers: Peers,
    options: Sequence[tuple[str, Any]] = (),
) -> tuple[grpc.aio.Server, int]:
    """A server bound to ``address`` ("host:port", port 0 for any) and its port; not yet started.

    Calls beyond ``maximum_concurrent_rpcs`` are refused with RESOURCE_EXHAUSTED; whom ``peers`` do not admit reaches no
    service. Connections beyond a quarter more, idle ones and those in their handshake included, are closed before TLS
    costs anything. Raises ListenError.
    """
    # A few more than can call, so that the first in excess are told so.
    connections = maximum_concurrent_rpcs + maximum_concurrent_rpcs // 4 + 1
    bound = [("grpc.max_allowed_incoming_connections", connections)]
    server = grpc.aio.server(
        interceptors=[peers.guard()],
        options=_overridden([*SERVER_OPTIONS, *bound], options),
        maximum_concurrent_rpcs=maximum_concurrent_rpcs,
    )
    return server, bind(server, address, credentials.server_credentials())


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    """Make the server listen at ``address`` too; the port. Raises ListenError."""
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        msg = f"cannot listen at {address}: {error}"
        raise ListenError(msg, address=address) from error


def serve_health(server: grpc.aio.Server, service_names: Sequence[str]) -> health.aio.HealthServicer:
    """Add the standard health and reflection services; all named services are SERVING until the servicer is told."""
    # Only servers have them; a device is none.
    from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection

    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = (*service_names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
    return servicer


async def set_serving(servicer: health.aio.HealthServicer, service_names: Sequence[str]) -> None:
    """Report the whole server ("") and the named services as SERVING."""
    from grpc_health.v1 import health_pb2

    for name in ("", *service_names):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)


def make_channel(
    credentials: Credentials, address: str, peer: NodeId, options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Channel:
    """A channel for calls and sessions, on a connection of its own, that accepts only ``peer``'s certificate."""
    return _channel(credentials, address, peer, _overridden(SESSION_OPTIONS, options))


def make_bulk_channel(
    credentials: Credentials, address: str, peer: NodeId, options: Sequence[tuple[str, Any]] = ()
) -> grpc.aio.Channel:
    """A channel for bulk bytes, on a connection of its own; close it when the transfer ends."""
    return _channel(credentials, address, peer, _overridden(BULK_OPTIONS, options))


def _overridden(options: Options, by: Sequence[tuple[str, Any]]) -> Options:
    """The options with some replaced or added; which of two equal names gRPC would take is not documented."""
    return list({**dict(options), **dict(by)}.items())


def _channel(credentials: Credentials, address: str, peer: NodeId, options: Options) -> grpc.aio.Channel:
    # Children dial addresses (NAT, a proxy, a spare box), but trust a name: the peer's own dns_name, a DNS SAN that the
    # fleet CA put into its certificate. The override makes TLS ask for that name (SNI) and check it; without it any
    # node of the fleet could stand in for the parent, as all have certificates of the same CA.
    target = ("grpc.ssl_target_name_override", peer.dns_name)
    return grpc.aio.secure_channel(address, credentials.channel_credentials(), options=[*options, target])


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a program's main coroutine, on uvloop where it is installed (hubs; a device does without)."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG_OBJECTS, *before[1:])
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(main)
    finally:
        gc.set_threshold(*before)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
