"""Asking a node: one channel per command, over mutual TLS, the server's SPIFFE id checked against the context.

A refusal becomes the error class it had at the server, with the server's sentence and reason.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from edgectl.contexts import Context
    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceAsyncStub

T = TypeVar("T")

CALL_TIMEOUT_S = 20.0


def ask(context: Context, question: Callable[[OperatorServiceAsyncStub], Awaitable[T]]) -> T:
    """Open a channel to the context's node, put the question, close. Raises WavemeshError."""
    return asyncio.run(_ask(context, question))


async def _ask(context: Context, question: Callable[[OperatorServiceAsyncStub], Awaitable[T]]) -> T:
    import grpc.aio

    from wavemesh.identity.credentials import NodeCredentials
    from wavemesh.runtime.grpc import make_channel
    from wavemesh.runtime.status import error_from_rpc
    from wavemesh.v1.operator_pb2_grpc import OperatorServiceStub

    credentials = NodeCredentials.load(context.identity)
    _warn_of_end(credentials, context)
    channel = make_channel(credentials, context.address, context.node)
    async with channel:
        try:
            return await question(OperatorServiceStub(channel))
        except grpc.aio.AioRpcError as exc:
            raise error_from_rpc(exc) from exc


def _warn_of_end(credentials: NodeCredentials, context: Context) -> None:
    """An operator's certificate is renewed by hand: say so in the last quarter of its life."""
    from datetime import UTC, datetime

    from edgectl.output import note

    leaf = credentials.certificate
    start, end, now = leaf.not_valid_before_utc, leaf.not_valid_after_utc, datetime.now(UTC)
    if now > end - (end - start) / 4:
        path = credentials.node_id.path
        note(
            f"warning: the certificate of {path} ends at {end.isoformat()}; renew it: "
            f"edgectl node request --dir {context.identity} --node {path}"
        )
