"""The port where nodes without a certificate join: a small server of its own beside the one of sessions.

It proves itself by TLS and asks for no certificate, so every bound here is tight: few calls at a time, small messages,
a rate for all callers together, no other service. Who may join is not decided here, but by the authority of the region
that ``answer`` leads to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from wavemesh.codec.statements import from_proto, to_proto
from wavemesh.errors import BusyError, NotFoundError
from wavemesh.identity.issuing import WrongNodeError, check_fleet, refusal
from wavemesh.identity.nodes import NodeId
from wavemesh.runtime.grpc import SERVER_OPTIONS, bind
from wavemesh.runtime.status import answers
from wavemesh.trust.enrolments import JoinRequest, JoinResponse
from wavemesh.v1 import enrolment_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wavemesh.identity.credentials import Credentials
    from wavemesh.runtime.clock import Clock
    from wavemesh.trust.enrolments import IssueAnswer

SERVICE_NAME: str = enrolment_pb2.DESCRIPTOR.services_by_name["EnrolmentService"].full_name
MAX_CALLS = 8
MAX_CONNECTIONS_AGE_MS = 30_000
MAX_REQUEST_BYTES = 16 * 1024
RATE_PER_S = 5.0
BURST = 20.0


class Bucket:
    """A token bucket: ``rate`` a second, at most ``burst`` at once."""

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        """Start full."""
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at_s = now_s

    def take(self, now_s: float) -> float:
        """Take one; 0 when there was one, else the seconds until there is."""
        self._level = min(self._burst, self._level + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return (1 - self._level) / self._rate


class JoinService:
    """EnrolmentService of one hub; see enrolment.proto."""

    def __init__(
        self,
        node_id: NodeId,
        answer: Callable[[JoinRequest], Awaitable[IssueAnswer]],
        clock: Clock,
        session_port: int,
    ) -> None:
        """``answer`` asks the authority of the region; ``session_port`` is where those that joined come back to."""
        self._node_id = node_id
        self._answer = answer
        self._clock = clock
        self._session_port = session_port
        self._bucket = Bucket(RATE_PER_S, BURST, clock.monotonic())

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service."""
        join = grpc.unary_unary_rpc_method_handler(
            self._join,
            request_deserializer=enrolment_pb2.JoinRequest.FromString,
            response_serializer=enrolment_pb2.JoinResponse.SerializeToString,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {"Join": join}),))

    @answers
    async def _join(
        self, message: enrolment_pb2.JoinRequest, _: grpc.aio.ServicerContext[Any, Any]
    ) -> enrolment_pb2.JoinResponse:
        """Let a child of this hub join."""
        wait_s = self._bucket.take(self._clock.monotonic())
        if wait_s:
            raise BusyError("too many nodes are joining here at once", wait_s)
        request = from_proto(JoinRequest, message)
        check_fleet(request.fleet, self._node_id.fleet)
        if not NodeId(request.fleet, request.node).is_child_of(self._node_id):
            msg = f"{request.node} is no child of {self._node_id.path}; join at its own parent"
            raise WrongNodeError(msg, node=request.node)
        answer = await self._answer(request)
        if answer.issued is None:
            raise refusal(answer.refused, answer.detail)
        if not answer.trust_root:
            msg = "the hub does not hold the TUF root that the token names; make the token anew"
            raise NotFoundError(msg)
        response: enrolment_pb2.JoinResponse = to_proto(
            JoinResponse(answer.issued, answer.trust_root, self._session_port)
        )
        return response


def make_join_server(credentials: Credentials, address: str, service: JoinService) -> tuple[grpc.aio.Server, int]:
    """A server for joining bound to ``address`` and its port, not yet started. Raises ListenError."""
    bounds = {
        "grpc.max_receive_message_length": MAX_REQUEST_BYTES,
        # Whoever connects and says nothing is not kept.
        "grpc.max_connection_idle_ms": MAX_CONNECTIONS_AGE_MS,
        "grpc.max_connection_age_ms": MAX_CONNECTIONS_AGE_MS,
    }
    options = list({**dict(SERVER_OPTIONS), **bounds}.items())
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
    service.add_to(server)
    return server, bind(server, address, credentials.joining_credentials())
