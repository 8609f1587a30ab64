"""Who calls, and for how long: the node that a call's TLS certificate proves, by the rules of this fleet.

TLS has checked that the chain is sound and that a server's name is right. It knows nothing of what each authority of a
chain may speak for, nor of what control took back, and it looks once, when a connection begins. So every server of the
mesh (``grpc.make_server``) puts ``Peers`` before every RPC of every service but health and reflection: a call is
admitted by its certificate, and ends with PERMISSION_DENIED when that is revoked (reason REVOKED) or expires, however
long the call was meant to last. A service needs to do nothing for that and cannot forget it; it asks ``of`` who calls.

No node can use up what a server has for all: its open calls are counted, those that nobody reads the end of included.

A certificate's end is waited for on the monotonic clock, from the time at which the call began: a wall clock that jumps
meanwhile ends no stream and prolongs none.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from wavemesh.errors import BusyError, ForbiddenError, PeerError
from wavemesh.identity.retirement import NoRetirements, check_in_use
from wavemesh.identity.revocations import RevokedError
from wavemesh.runtime.status import answers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from wavemesh.identity.authorities import Authorities
    from wavemesh.identity.certificates import Proof
    from wavemesh.identity.nodes import NodeId
    from wavemesh.identity.retirement import Retirements
    from wavemesh.runtime.clock import Clock

    Context = grpc.aio.ServicerContext[Any, Any]
    Handler = grpc.RpcMethodHandler[Any, Any]

_FOR_EVERYBODY = frozenset(
    f"/{service.full_name}"
    for module in (health_pb2, reflection_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
"""They say nothing of the fleet, and probes of load balancers need them."""


MAXIMUM_CALLS_PER_NODE = 64
"""A device has a session, another while it moves, and four reads; a store hub and a service have more."""
RETRY_S = 1.0


@dataclass(eq=False, slots=True)
class _Call:
    """A call under way; ``ended_by`` is set with the time that ends it."""

    proof: Proof
    term: asyncio.Timeout
    ended_by: ForbiddenError


class Peers:
    """The callers of one server."""

    def __init__(
        self,
        authorities: Authorities,
        clock: Clock,
        retirements: Retirements | None = None,
        maximum_calls_per_node: int = MAXIMUM_CALLS_PER_NODE,
    ) -> None:
        """Believe those authorities, at the clock's time, but no certificate that has retired.

        No node may have more calls open than ``maximum_calls_per_node``.
        """
        self._authorities = authorities
        self._clock = clock
        self._retirements = retirements or NoRetirements()
        self._calls: dict[Context, _Call] = {}
        self._maximum_calls_per_node = maximum_calls_per_node
        self._open: Counter[str] = Counter()
        authorities.on_change(self._judge_again)

    def of(self, context: Context) -> NodeId:
        """Who makes this call. RuntimeError in a server that has no ``Peers`` before its services."""
        return self.proof(context).node_id

    def proof(self, context: Context) -> Proof:
        """The same, with the certificate it was proved by."""
        call = self._calls.get(context)
        if call is None:
            msg = "a call that was not admitted: make the server by make_server, with these peers"
            raise RuntimeError(msg)
        return call.proof

    async def used(self, proof: Proof) -> None:
        """A session was opened with that certificate: older ones of the node retire. Durable before it returns."""
        newest = self._retirements.newest(proof.node_id.path)
        if newest is None or proof.issued_at > newest:
            await self._retirements.used(proof.node_id.path, proof.issued_at)

    @asynccontextmanager
    async def admitted(self, context: Context) -> AsyncGenerator[None]:
        """The block in which a call is served.

        Raises ForbiddenError when the certificate proves no node of the fleet, or does not any more, and BusyError when
        the node has too many calls open.
        """
        proof = self._prove(context)
        self._count(proof.node_id.path, context)
        left_s = (proof.expires_at - self._clock.now()).total_seconds()
        expired = ForbiddenError(
            f"certificate of {proof.node_id.uri} expired at {proof.expires_at.isoformat()}: renew it, and come again",
            node=proof.node_id.path,
        )
        try:
            async with asyncio.timeout(max(left_s, 0.0)) as term:
                call = self._calls[context] = _Call(proof, term, expired)
                try:
                    yield
                finally:
                    del self._calls[context]
        except TimeoutError:
            if term.expired():
                raise call.ended_by from None
            raise

    def prove(self, leaf: bytes, chain: bytes) -> Proof:
        """What a TLS peer's certificate and the chain it showed, in PEM, prove now; raises ForbiddenError."""
        try:
            proof = self._authorities.prove_pem(leaf, self._clock.now(), chain)
        except RevokedError:
            raise
        except PeerError as error:
            msg = f"the client certificate proves no node of this fleet: {error}"
            raise ForbiddenError(msg) from error
        check_in_use(self._retirements, proof.node_id.path, proof.issued_at)
        return proof

    def guard(self) -> grpc.aio.ServerInterceptor:
        """What a server puts before its services."""
        return _Guard(self)

    def _prove(self, context: Context) -> Proof:
        shown = context.auth_context()
        leaf = b"".join(map(bytes, shown.get("x509_pem_cert", ())))
        chain = b"".join(map(bytes, shown.get("x509_pem_cert_chain", ())))
        return self.prove(leaf, chain)

    def _count(self, path: str, context: Context) -> None:
        """Count the call until gRPC is done with it: one whose end the caller does not read outlives its handler."""
        if self._open[path] >= self._maximum_calls_per_node:
            raise BusyError(f"{path} has {self._open[path]} calls open", RETRY_S)
        self._open[path] += 1
        context.add_done_callback(lambda _: self._uncount(path))  # type: ignore[arg-type]  # stubs without __call__

    def _uncount(self, path: str) -> None:
        self._open[path] -= 1
        if not self._open[path]:
            del self._open[path]

    def _judge_again(self) -> None:
        """The list of revocations changed: end what it hits, now."""
        now = asyncio.get_running_loop().time()
        for call in self._calls.values():
            try:
                self._authorities.check_not_revoked(call.proof)
            except RevokedError as error:
                if not call.term.expired():
                    call.ended_by = error
                    call.term.reschedule(now)


class _Guard(grpc.aio.ServerInterceptor):
    """Puts ``Peers.admitted`` around every handler."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.rpartition("/")[0]
        if handler is None or service in _FOR_EVERYBODY:
            return handler
        kinds = {True: "stream", False: "unary"}
        kind = f"{kinds[handler.request_streaming]}_{kinds[handler.response_streaming]}"
        behaviour = getattr(handler, kind)
        peers = self._peers

        @answers
        async def serve(request: Any, context: Context) -> Any:
            async with peers.admitted(context):
                return await behaviour(request, context)

        named_tuple: Any = handler
        guarded: Handler = named_tuple._replace(**{kind: serve})
        return guarded
