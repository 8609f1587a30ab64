"""Out of the mesh: to an OTLP receiver, where a node has one configured.

A receiver that finds fault with the data (INVALID_ARGUMENT) is asked about each batch alone, and what it does not take
alone is given up and told to the log; every other refusal is waited out for as long as the outbox keeps the data,
because a wrong certificate or address is mended by people.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import grpc

from wavemesh.errors import BusyError, LinkDownError, LocalError, PeerError
from wavemesh.runtime.status import error_from_rpc, retry_after_of
from wavemesh.telemetry.shipping import TIMEOUT_S, Shipping, ToParent, Way

if TYPE_CHECKING:
    from random import Random

    from wavemesh.session.seams import ReportLog, Upstream
    from wavemesh.telemetry.batches import Pending
    from wavemesh.telemetry.config import TelemetryConfig
    from wavemesh.telemetry.outbox import Outbox

_LOG = logging.getLogger(__name__)

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class ReceiverError(LocalError):
    """The CA file for the OTLP receiver cannot be read."""

    reason = "OTLP_RECEIVER"


class ToReceiver:
    """By OTLP/gRPC. The request is the batches' bytes one after the other: protobuf reads that as one message."""

    def __init__(self, config: TelemetryConfig) -> None:
        """Raises ReceiverError if the CA file cannot be read."""
        self._config = config
        self._authorities = _read(config)
        self._channel: grpc.aio.Channel | None = None

    @property
    def is_open(self) -> bool:
        """Only trying tells."""
        return True

    async def send(self, pending: Pending) -> int:
        """The receiver has what is settled; a batch it finds fault with is given up."""
        bodies = [batch.otlp_traces for batch in pending.batches]
        try:
            await self._export(b"".join(bodies))
        except PeerError as error:
            if not _is_fault_of_data(error):
                raise
            for body, batch in zip(bodies, pending.batches, strict=True):
                await self._export_alone(body, batch.source)
        return len(bodies)

    async def _export_alone(self, body: bytes, source: str) -> None:
        try:
            await self._export(body)
        except PeerError as error:
            if not _is_fault_of_data(error):
                raise
            _LOG.warning("the OTLP receiver refused a batch of %s: %s", source, error)

    async def _export(self, body: bytes) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

        if self._channel is None:
            self._channel = self._dial()
        call: Any = self._channel.unary_unary(
            EXPORT, request_serializer=None, response_deserializer=ExportTraceServiceResponse.FromString
        )
        try:
            answer = await call(body, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            found = _peer_error(error)
            if not _is_fault_of_data(found):
                await self.close()  # a channel that failed is not dialled again: each attempt begins anew
            raise found from error
        if answer.partial_success.rejected_spans:
            partial = answer.partial_success
            _LOG.warning("the OTLP receiver rejected %d spans: %s", partial.rejected_spans, partial.error_message[:500])

    def _dial(self) -> grpc.aio.Channel:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        if not self._config.is_encrypted:
            return grpc.aio.insecure_channel(self._config.target, options=options)
        credentials = grpc.ssl_channel_credentials(self._authorities)
        return grpc.aio.secure_channel(self._config.target, credentials, options=options)

    async def close(self) -> None:
        """Close the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


def way_for(config: TelemetryConfig, upstream: Upstream | None, log: ReportLog | None) -> Way | None:
    """The way of a node: the receiver if one is configured, else its parent; None for control without a receiver."""
    if not config.enabled:
        return None
    if config.otlp_endpoint:
        return ToReceiver(config)
    return ToParent(upstream, log) if upstream is not None and log is not None else None


async def ship(outbox: Outbox, way: Way | None, rng: Random) -> None:
    """Keep the outbox within its bounds and ship what is in it, for as long as the node runs."""
    async with asyncio.TaskGroup() as group:
        group.create_task(outbox.keep_bounded())
        if way is not None:
            group.create_task(Shipping(outbox, way, rng.uniform).run())


def _is_fault_of_data(error: PeerError) -> bool:
    return type(error) is PeerError


def _peer_error(error: grpc.aio.AioRpcError) -> PeerError:
    """What a failed export means; the receiver's own word on when to come back counts with whatever code it came."""
    found, retry_after_s = error_from_rpc(error), retry_after_of(error)
    if retry_after_s is not None:
        return BusyError(str(found), retry_after_s)
    return found if isinstance(found, PeerError) else LinkDownError(str(found))


def _read(config: TelemetryConfig) -> bytes | None:
    if config.otlp_ca_file is None:
        return None
    try:
        return config.otlp_ca_file.read_bytes()
    except OSError as error:
        msg = f"cannot read otlp_ca_file {config.otlp_ca_file}: {error.strerror}"
        raise ReceiverError(msg) from error
