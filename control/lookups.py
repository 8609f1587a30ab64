"""The operator's API at control, first part: who calls, and what is only looked up."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar

from wavemesh.errors import ForbiddenError
from wavemesh.identity.nodes import Role
from wavemesh.runtime.status import answers
from wavemesh.v1 import operator_pb2
from wavemesh.v1.operator_pb2_grpc import OperatorServiceServicer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import grpc

    from control.listings import Listings
    from control.queries import Queries
    from control.reconciling import Reconciling
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.peers import Peers

    Context = grpc.aio.ServicerContext[Any, Any]

_Self = TypeVar("_Self", bound="Lookups")
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


def for_operators(
    handler: Callable[[_Self, _Request, NodeId], Awaitable[_Response]],
) -> Callable[[_Self, _Request, Context], Awaitable[_Response]]:
    """Let only operators in, and map errors; the handler is given the caller instead of the context."""

    @answers
    @functools.wraps(handler)
    async def handle(self: _Self, request: _Request, context: Context) -> _Response:
        return await handler(self, request, self.caller(context))

    return handle


class Lookups(OperatorServiceServicer):
    """The calls of OperatorService that change nothing and are answered by one query."""

    def __init__(self, queries: Queries, listings: Listings, reconciling: Reconciling, peers: Peers) -> None:
        """Answer from there; ``peers`` know who calls."""
        self._queries = queries
        self._listings = listings
        self._reconciling = reconciling
        self._peers = peers

    def caller(self, context: Context) -> NodeId:
        """Who calls; raises ForbiddenError for all but operators."""
        peer = self._peers.of(context)
        if peer.role is not Role.OPERATOR:
            msg = f"{peer.uri} is a {peer.role.value}; this API is for operators"
            raise ForbiddenError(msg, peer=peer.uri)
        return peer

    @for_operators
    async def GetIntent(  # noqa: N802  # gRPC names
        self, request: operator_pb2.GetIntentRequest, caller: NodeId
    ) -> operator_pb2.GetIntentResponse:
        """One intent."""
        del caller
        return operator_pb2.GetIntentResponse(record=await self._queries.intent(request.intent_id))

    @for_operators
    async def ListStores(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListStoresRequest, caller: NodeId
    ) -> operator_pb2.ListStoresResponse:
        """A page of stores."""
        del caller
        return await self._listings.stores(request)

    @for_operators
    async def GetStore(  # noqa: N802  # gRPC names
        self, request: operator_pb2.GetStoreRequest, caller: NodeId
    ) -> operator_pb2.GetStoreResponse:
        """One store."""
        del caller
        return operator_pb2.GetStoreResponse(store=await self._listings.store(request.store))

    @for_operators
    async def ListCohorts(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListCohortsRequest, caller: NodeId
    ) -> operator_pb2.ListCohortsResponse:
        """A page of cohorts."""
        del caller
        return await self._listings.cohorts(request)

    @for_operators
    async def ListPolicies(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListPoliciesRequest, caller: NodeId
    ) -> operator_pb2.ListPoliciesResponse:
        """A page of policies."""
        del caller
        return await self._listings.policies(request)

    @for_operators
    async def GetPolicy(  # noqa: N802  # gRPC names
        self, request: operator_pb2.GetPolicyRequest, caller: NodeId
    ) -> operator_pb2.GetPolicyResponse:
        """One policy."""
        del caller
        return operator_pb2.GetPolicyResponse(policy=await self._listings.policy(request))

    @for_operators
    async def ListPermits(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListPermitsRequest, caller: NodeId
    ) -> operator_pb2.ListPermitsResponse:
        """A page of permits."""
        del caller
        return await self._listings.permits(request)

    @for_operators
    async def ListHolds(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListHoldsRequest, caller: NodeId
    ) -> operator_pb2.ListHoldsResponse:
        """The hold list."""
        del request, caller
        return await self._listings.holds()

    @for_operators
    async def GetTrace(  # noqa: N802  # gRPC names
        self, request: operator_pb2.GetTraceRequest, caller: NodeId
    ) -> operator_pb2.GetTraceResponse:
        """One trace."""
        del caller
        return await self._queries.trace(request)

    @for_operators
    async def ListNodes(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListNodesRequest, caller: NodeId
    ) -> operator_pb2.ListNodesResponse:
        """A page of nodes."""
        del caller
        return await self._queries.nodes(request)

    @for_operators
    async def ListDiscrepancies(  # noqa: N802  # gRPC names
        self, request: operator_pb2.ListDiscrepanciesRequest, caller: NodeId
    ) -> operator_pb2.ListDiscrepanciesResponse:
        """What expected and reported progress differ in."""
        del caller
        return await self._reconciling.answer(request)
