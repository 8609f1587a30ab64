"""Asking a parent by which deliveries a blob could come: the client of ``ArtifactService.Offer``.

What a peer says is read within bounds and judged by ``plan.py``; a method this version does not know is passed over. A
parent that is older than deliveries answers UNIMPLEMENTED, which is None here: the blob is read as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from wavemesh.artifacts.digests import check_digest
from wavemesh.artifacts.plan import Method, Offer
from wavemesh.artifacts.transfer import SERVICE_NAME, BadTransferError
from wavemesh.runtime.status import error_from_rpc
from wavemesh.trust.statements import Digest
from wavemesh.v1 import artifact_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

OFFER_TIMEOUT_S = 30.0
MAX_BASES = 64
MAX_DELIVERIES = 512

_OFFER = f"/{SERVICE_NAME}/Offer"
_METHODS = {
    Method.FULL: artifact_pb2.DELIVERY_METHOD_FULL,
    Method.FULL_ZSTD: artifact_pb2.DELIVERY_METHOD_FULL_ZSTD,
    Method.CHUNKS: artifact_pb2.DELIVERY_METHOD_CHUNKS,
    Method.DELTA: artifact_pb2.DELIVERY_METHOD_DELTA,
}
_KNOWN = {number: method for method, number in _METHODS.items()}


async def ask_offers(
    channel: grpc.aio.Channel, target: Digest, bases: Sequence[Digest], methods: Sequence[Method]
) -> tuple[Offer, ...] | None:
    """What the parent offers for ``target`` to who holds ``bases``, at most MAX_BASES, the likeliest first.

    Raises as ``ArtifactClient.read``; BadTransferError for an answer that is none. None: it knows no deliveries.
    """
    request = artifact_pb2.OfferRequest(
        target=_message(target),
        bases=[_message(base) for base in bases[:MAX_BASES]],
        methods=[_METHODS[method] for method in methods],
    )
    call = channel.unary_unary(
        _OFFER,
        request_serializer=artifact_pb2.OfferRequest.SerializeToString,
        response_deserializer=artifact_pb2.OfferResponse.FromString,
    )
    try:
        response: artifact_pb2.OfferResponse | None = await call(request, timeout=OFFER_TIMEOUT_S)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return None
        raise error_from_rpc(error) from error
    if response is None:  # how gRPC hands over bytes that are no message
        msg = "the answer to Offer is no protobuf message"
        raise BadTransferError(msg)
    if len(response.deliveries) > MAX_DELIVERIES:
        msg = f"{len(response.deliveries)} deliveries are offered; at most {MAX_DELIVERIES}"
        raise BadTransferError(msg)
    return tuple(offer_of(one, methods, bases) for one in response.deliveries if one.method in _KNOWN)


def offer_of(message: artifact_pb2.Delivery, methods: Sequence[Method], bases: Sequence[Digest]) -> Offer:
    """One delivery; raises BadTransferError when it needs what was not named, BadDigestError for a bad digest."""
    method = _KNOWN[message.method]
    needed = tuple(_digest(base) for base in message.bases)
    if method is not Method.FULL and (method not in methods or not set(needed) <= set(bases)):
        msg = f"a delivery by {method.value} is offered that needs what was not named: {len(needed)} bases"
        raise BadTransferError(msg)
    return Offer(
        method=method,
        bases=needed,
        payload=_digest(message.payload) if message.HasField("payload") else None,
        index=_digest(message.index) if message.HasField("index") else None,
        read_bytes=message.read_bytes,
        ready_in_s=float(message.ready_in_s),
        rebuild_s=message.rebuild_s,
    )


def _digest(message: artifact_pb2.Digest) -> Digest:
    return check_digest(Digest(message.sha256, message.size_bytes))


def _message(digest: Digest) -> artifact_pb2.Digest:
    return artifact_pb2.Digest(sha256=digest.sha256, size_bytes=digest.size_bytes)
