"""ArtifactService, both ends: blobs move on channels of their own that exist only while a transfer does.

Rules: the peer's TLS identity alone decides; a server serves its own children only. Reads beyond the bounds, in all or
of one peer, are shed with a time to come back. A stream that stands still is ended by either side. The sender reads the
next bytes only after gRPC took the last ones, so flow control reaches down to the disk. ReadResponse is framed and
parsed by hand (tag, varint, bytes), which saves a copy of every byte on both sides and stays valid protobuf.

A blob that ended is not yet a blob that is right: whoever receives it verifies it.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError

from wavemesh.artifacts.digests import OutOfRangeError, check_digest, end_of
from wavemesh.artifacts.pacing import FIRST_MESSAGE_BYTES, most_message_bytes, next_message_bytes
from wavemesh.artifacts.partial import BlobMismatchError
from wavemesh.artifacts.plan import Method
from wavemesh.errors import BusyError, ForbiddenError, LinkDownError, PeerError
from wavemesh.runtime.status import STATUS_KEY, answers, error_from_rpc, status_of
from wavemesh.trust.statements import Digest
from wavemesh.v1 import artifact_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterator, Sequence

    from wavemesh.artifacts.plan import Offer
    from wavemesh.identity.nodes import NodeId
    from wavemesh.runtime.peers import Peers

    Context = grpc.aio.ServicerContext[Any, Any]

SERVICE_NAME = artifact_pb2.DESCRIPTOR.services_by_name["ArtifactService"].full_name
MAX_FIND_MISSING = 4096
MAX_BASES = 64
MAX_OFFERS = 64
STALL_S = 60.0
SHED_RETRY_S = 2.0

_READ = f"/{SERVICE_NAME}/Read"
_FIND_MISSING = f"/{SERVICE_NAME}/FindMissing"
_DATA_TAG = b"\x0a"  # field 1, length-delimited
_CODES = {OutOfRangeError: grpc.StatusCode.OUT_OF_RANGE, BlobMismatchError: grpc.StatusCode.DATA_LOSS}


class BadTransferError(PeerError):
    """A sender's frame is malformed, or it sends more than the blob has."""

    reason = "BAD_TRANSFER"


_METHODS = {
    artifact_pb2.DELIVERY_METHOD_FULL: Method.FULL,
    artifact_pb2.DELIVERY_METHOD_FULL_ZSTD: Method.FULL_ZSTD,
    artifact_pb2.DELIVERY_METHOD_CHUNKS: Method.CHUNKS,
    artifact_pb2.DELIVERY_METHOD_DELTA: Method.DELTA,
}
_NUMBERS = {method: number for number, method in _METHODS.items()}


class OfferSource(Protocol):
    """Who knows by which deliveries a blob could come to a peer."""

    async def offer(
        self, peer: NodeId, target: Digest, bases: Sequence[Digest], methods: Collection[Method]
    ) -> Sequence[Offer]:
        """The deliveries by these methods to a peer that holds these bases; raises as ``BlobSource.open``."""
        ...


class BlobSource(Protocol):
    """Where a server's blobs come from; it decides what a peer may have."""

    async def find_missing(self, peer: NodeId, digests: Sequence[Digest]) -> Sequence[Digest]:
        """Those of the digests that are not held, in order."""
        ...

    async def open(self, peer: NodeId, digest: Digest, offset: int, length_bytes: int) -> AsyncGenerator[bytes, None]:
        """``length_bytes`` bytes from ``offset`` on, fetched meanwhile if need be; the iterator may raise as this may.

        The caller has looked that the blob has so many. Raises NotFoundError, GateError, BusyError, OutOfRangeError,
        BlobMismatchError.
        """
        ...


def frame(data: bytes) -> bytes:
    """A ReadResponse with this data, serialised."""
    length, prefix = len(data), bytearray(_DATA_TAG)
    while length > 0x7F:
        prefix.append(length & 0x7F | 0x80)
        length >>= 7
    prefix.append(length)
    return b"".join((prefix, data))


def unframe(message: bytes) -> memoryview:
    """The data of a serialised ReadResponse, without a copy in the usual form; raises BadTransferError."""
    length = 0
    if message[:1] == _DATA_TAG:
        for position, byte in enumerate(message[1:6], start=1):
            length |= (byte & 0x7F) << 7 * (position - 1)
            if byte < 0x80:
                if position + 1 + length == len(message):
                    return memoryview(message)[position + 1 :]
                break
    try:  # valid protobuf in an unusual form: fields unknown to us, a longer varint than needed
        return memoryview(artifact_pb2.ReadResponse.FromString(message).data)
    except DecodeError as error:
        msg = f"a frame of {len(message)} bytes is no ReadResponse"
        raise BadTransferError(msg) from error


def _digest(message: artifact_pb2.Digest) -> Digest:
    return check_digest(Digest(message.sha256, message.size_bytes))


def _message(digest: Digest) -> artifact_pb2.Digest:
    return artifact_pb2.Digest(sha256=digest.sha256, size_bytes=digest.size_bytes)


class ArtifactServer:
    """Serves a BlobSource to the children of ``node_id``."""

    def __init__(
        self,
        node_id: NodeId,
        source: BlobSource,
        peers: Peers,
        *,
        offers: OfferSource | None = None,
        maximum_reads: int = 64,
        maximum_reads_per_peer: int = 4,
        stall_s: float = STALL_S,
    ) -> None:
        """Bound the reads at a time, in all and of one peer; ``stall_s`` ends a read that nobody takes bytes of.

        Without ``offers`` no deliveries are known here: Offer is UNIMPLEMENTED.
        """
        self._offers = offers
        self._offers_active = 0
        self._node_id = node_id
        self._source = source
        self._peers = peers
        self._maximum_reads = maximum_reads
        self._maximum_reads_per_peer = maximum_reads_per_peer
        self._stall_s = stall_s
        self._reads: Counter[NodeId] = Counter()

    @property
    def reads_active(self) -> int:
        """Reads going on now."""
        return self._reads.total()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the service."""
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "FindMissing": grpc.unary_unary_rpc_method_handler(
                self.find_missing,
                request_deserializer=artifact_pb2.FindMissingRequest.FromString,
                response_serializer=artifact_pb2.FindMissingResponse.SerializeToString,
            ),
            "Read": grpc.unary_stream_rpc_method_handler(
                self.read, request_deserializer=artifact_pb2.ReadRequest.FromString, response_serializer=None
            ),
        }
        if self._offers is not None:
            handlers["Offer"] = grpc.unary_unary_rpc_method_handler(
                self.offer,
                request_deserializer=artifact_pb2.OfferRequest.FromString,
                response_serializer=artifact_pb2.OfferResponse.SerializeToString,
            )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    @answers
    async def find_missing(
        self, request: artifact_pb2.FindMissingRequest, context: Context
    ) -> artifact_pb2.FindMissingResponse:
        """Handle FindMissing."""
        peer = self._child(context)
        if len(request.digests) > MAX_FIND_MISSING:
            msg = f"{len(request.digests)} digests in one FindMissing; at most {MAX_FIND_MISSING}"
            raise PeerError(msg)
        missing = await self._source.find_missing(peer, [_digest(digest) for digest in request.digests])
        return artifact_pb2.FindMissingResponse(missing=[_message(digest) for digest in missing])

    @answers
    async def offer(self, request: artifact_pb2.OfferRequest, context: Context) -> artifact_pb2.OfferResponse:
        """Handle Offer."""
        peer = self._child(context)
        if len(request.bases) > MAX_BASES:
            msg = f"{len(request.bases)} bases in one Offer; at most {MAX_BASES}, the likeliest first"
            raise PeerError(msg)
        target, bases = _digest(request.target), [_digest(base) for base in request.bases]
        methods = {_METHODS[number] for number in request.methods if number in _METHODS}
        if self._offers is None or self._offers_active >= MAX_OFFERS:
            msg = f"{self._offers_active} offers are being made here"
            raise BusyError(msg, retry_after_s=SHED_RETRY_S)
        self._offers_active += 1
        try:
            offers = await self._offers.offer(peer, target, bases, methods)
        finally:
            self._offers_active -= 1
        return artifact_pb2.OfferResponse(deliveries=[_delivery(one) for one in offers])

    @answers
    async def read(self, request: artifact_pb2.ReadRequest, context: Context) -> None:
        """Handle Read: a coroutine that writes, because a generator's end would depend on who drops it when."""
        peer = self._child(context)
        try:
            digest = _digest(request.digest)
            length = end_of(digest, request.offset, request.length_bytes) - request.offset
            with self._counted(peer):
                async with aclosing(await self._source.open(peer, digest, request.offset, length)) as pieces:
                    await self._send(context, pieces, length, most_message_bytes(request.window_bytes))
        except (OutOfRangeError, BlobMismatchError) as error:
            await _abort(context, error)

    async def _send(self, context: Context, pieces: AsyncIterator[bytes], length: int, most_bytes: int) -> None:
        """``length`` bytes of the pieces, in messages as large as the peer is fast, and of so many bytes at most."""
        clock, message_bytes = asyncio.get_running_loop(), FIRST_MESSAGE_BYTES
        async for piece in pieces:
            start, last = 0, min(len(piece), length)
            while start < last:
                end, began_s = min(start + min(message_bytes, most_bytes), last), clock.time()
                await self._write(context, frame(piece[start:end]))
                start, message_bytes = end, next_message_bytes(message_bytes, clock.time() - began_s)
            length -= last

    async def _write(self, context: Context, message: bytes) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                await context.write(message)
        except TimeoutError as error:
            msg = f"no bytes were taken for {self._stall_s:g} s"
            raise LinkDownError(msg) from error

    def _child(self, context: Context) -> NodeId:
        peer = self._peers.of(context)
        if not peer.is_child_of(self._node_id):
            msg = f"{peer.uri} is not a child of {self._node_id.uri}: fetch from your own parent"
            raise ForbiddenError(msg, peer=peer.uri)
        return peer

    @contextmanager
    def _counted(self, peer: NodeId) -> Iterator[None]:
        if self.reads_active >= self._maximum_reads or self._reads[peer] >= self._maximum_reads_per_peer:
            msg = f"{self.reads_active} reads are going on here, {self._reads[peer]} of them yours"
            raise BusyError(msg, retry_after_s=SHED_RETRY_S)
        self._reads[peer] += 1
        try:
            yield
        finally:
            self._reads[peer] -= 1
            if not self._reads[peer]:
                del self._reads[peer]


def _delivery(offer: Offer) -> artifact_pb2.Delivery:
    return artifact_pb2.Delivery(
        method=_NUMBERS[offer.method],
        bases=[_message(base) for base in offer.bases],
        payload=None if offer.payload is None else _message(offer.payload),
        index=None if offer.index is None else _message(offer.index),
        read_bytes=offer.read_bytes,
        ready_in_s=math.ceil(offer.ready_in_s),
        rebuild_s=offer.rebuild_s,
    )


async def _abort(context: Context, error: OutOfRangeError | BlobMismatchError) -> NoReturn:
    """End the call with the code that the contract gives to this error; status.py knows base classes only."""
    code = _CODES[type(error)]
    status = status_of(error)
    status.code, _ = code.value
    await context.abort(code, status.message, ((STATUS_KEY, status.SerializeToString()),))


class ArtifactClient:
    """Fetches blobs from a parent. The channel is opened for the first transfer and closed after the last."""

    def __init__(
        self, open_channel: Callable[[], grpc.aio.Channel], *, stall_s: float = STALL_S, window_bytes: int = 0
    ) -> None:
        """``open_channel`` makes a bulk channel to the parent; ``stall_s`` ends a read in which nothing arrives.

        ``window_bytes`` is what the channels let be on the way, where that is bounded (``yielding.py``).
        """
        self._window_bytes = window_bytes
        self._open_channel = open_channel
        self._stall_s = stall_s
        self._channel: grpc.aio.Channel | None = None
        self._users = 0

    async def find_missing(self, digests: Sequence[Digest]) -> list[Digest]:
        """Which of the digests (at most MAX_FIND_MISSING) the parent does not hold; raises as ``read``."""
        request = artifact_pb2.FindMissingRequest(digests=[_message(digest) for digest in digests])
        async with self.transfer() as channel:
            call = channel.unary_unary(
                _FIND_MISSING,
                request_serializer=artifact_pb2.FindMissingRequest.SerializeToString,
                response_deserializer=artifact_pb2.FindMissingResponse.FromString,
            )
            try:
                response: artifact_pb2.FindMissingResponse | None = await call(request, timeout=self._stall_s)
            except grpc.aio.AioRpcError as error:
                raise error_from_rpc(error) from error
        if response is None:  # how gRPC hands over bytes that are no message
            msg = "the answer to FindMissing is no protobuf message"
            raise BadTransferError(msg)
        return [_digest(digest) for digest in response.missing]

    async def read(self, digest: Digest, offset: int = 0, length_bytes: int = 0) -> AsyncGenerator[memoryview, None]:
        """The bytes of a blob from ``offset`` on, unverified: ``length_bytes`` of them, or with 0 all to its end.

        Close the iterator if you leave it early. A server of an older version knows no length and sends all to the end;
        it is stopped at the last byte wanted. Raises LinkDownError (also when the stream ends early or stands still),
        NotFoundError, GateError, BusyError, ForbiddenError, BadTransferError, RemoteFaultError, OutOfRangeError.
        """
        end = offset + length_bytes if length_bytes else digest.size_bytes
        request = artifact_pb2.ReadRequest(
            digest=_message(digest), offset=offset, window_bytes=self._window_bytes, length_bytes=length_bytes
        )
        async with self.transfer() as channel:
            start: grpc.aio.UnaryStreamMultiCallable[artifact_pb2.ReadRequest, bytes] = channel.unary_stream(
                _READ, request_serializer=artifact_pb2.ReadRequest.SerializeToString, response_deserializer=None
            )
            call: grpc.aio.UnaryStreamCall[artifact_pb2.ReadRequest, bytes] = start(request)
            try:
                while (message := await self._next(call)) is not None:
                    piece = unframe(message)
                    if offset + len(piece) > digest.size_bytes:
                        msg = f"more than the {digest.size_bytes} bytes of blob {digest.sha256} were sent"
                        raise BadTransferError(msg)
                    piece = piece[: end - offset]
                    offset += len(piece)
                    if piece:
                        yield piece
                    if length_bytes and offset >= end:
                        break
            finally:
                call.cancel()
        if offset < end:
            msg = f"the stream of blob {digest.sha256} ended at byte {offset} of {end}"
            raise LinkDownError(msg)

    async def _next(self, call: grpc.aio.UnaryStreamCall[artifact_pb2.ReadRequest, bytes]) -> bytes | None:
        """The next frame, None at the end of the stream."""
        try:
            # A read that times out cancels the whole call; nothing is lost, the caller resumes at its offset.
            async with asyncio.timeout(self._stall_s):
                message = await call.read()
        except TimeoutError as error:
            msg = f"no bytes arrived for {self._stall_s:g} s"
            raise LinkDownError(msg) from error
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        return message if isinstance(message, bytes) else None

    @asynccontextmanager
    async def transfer(self) -> AsyncIterator[grpc.aio.Channel]:
        """Keep the channel open meanwhile: blobs that belong together cost one connection; each handshake is dear."""
        if self._channel is None:
            self._channel = self._open_channel()
        channel = self._channel
        self._users += 1
        try:
            yield channel
        finally:
            self._users -= 1
            if not self._users:
                self._channel = None
                await channel.close()
