"""Telemetry between two tiers, as telemetry.proto has it; wavemesh/codec/statements.py reads and writes it."""

from __future__ import annotations

from dataclasses import dataclass

MAX_BATCHES = 64
MAX_BATCH_BYTES = 48 * 1024
MAX_UPLOAD_BYTES = 60 * 1024
MAX_NUMBER = 2**63 - 1
ASK_KIND = "telemetry"
_BATCH_OVERHEAD_BYTES = 320
"""Names and framing of one batch, at the most."""


@dataclass(frozen=True, slots=True)
class TelemetryBatch:
    """Spans of one node about one trace, in OTLP; (source, incarnation, number) names it."""

    source: str
    incarnation: str
    number: int
    otlp_traces: bytes


@dataclass(frozen=True, slots=True)
class TelemetryUpload:
    """A run of batches, and how many were dropped so far at the sender and below."""

    batches: tuple[TelemetryBatch, ...]
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class TelemetryUploadAnswer:
    """``settled`` batches, from the first, need not be sent again; ``refused`` of them were not believed."""

    settled: int
    refused: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pending:
    """Batches to send next, the oldest, and the sender's number of each; ``dropped`` as in TelemetryUpload."""

    batches: tuple[TelemetryBatch, ...]
    numbers: tuple[int, ...]
    dropped: int


def one_upload(batches: tuple[TelemetryBatch, ...]) -> tuple[TelemetryBatch, ...]:
    """Those that fit into one upload, from the first; at least one."""
    room, count = MAX_UPLOAD_BYTES, 0
    for batch in batches[:MAX_BATCHES]:
        room -= len(batch.otlp_traces) + _BATCH_OVERHEAD_BYTES
        if count and room < 0:
            break
        count += 1
    return batches[:count]
