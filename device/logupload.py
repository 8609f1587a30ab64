"""Uploads the log to the hub by the ask "logs": in runs, from the line after the last one the hub has."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from wavemesh.codec.statements import decode, encode
from wavemesh.errors import PeerError
from wavemesh.runtime.durable import DiskFullError
from wavemesh.telemetry.uploads import LogLine, LogUpload, LogUploadAnswer

if TYPE_CHECKING:
    from device.equipment import Equipment
    from device.logs import Line
    from wavemesh.session.seams import Upstream

MAX_LINES = 500
MAX_TEXT_BYTES = 50 * 1024
LINE_OVERHEAD_BYTES = 80
ASK_TIMEOUT_S = 10.0


async def upload_logs(equipment: Equipment, upstream: Upstream) -> None:
    """Upload until cancelled; an interval without a session is skipped, nothing is lost while the ring lasts."""
    while True:
        await asyncio.sleep(equipment.config.timing.log_upload_interval_s)
        while upstream.is_connected and await _upload_once(equipment, upstream):
            pass


async def _upload_once(equipment: Equipment, upstream: Upstream) -> bool:
    """Upload one run; whether there may be more."""
    lines = equipment.log.lines(equipment.store.document.logs_uploaded + 1, MAX_LINES)
    run = bounded_run(lines)
    if not run:
        return False
    upload = LogUpload(run[0].number, tuple(LogLine(line.at, line.level, line.wave_id, line.text) for line in run))
    try:
        answer = decode(LogUploadAnswer, await upstream.ask("logs", encode(upload), ASK_TIMEOUT_S))
    except (PeerError, TimeoutError):
        return False
    if answer.through <= equipment.store.document.logs_uploaded:
        return False
    try:
        equipment.store.note_logs_uploaded(min(answer.through, run[-1].number))
    except DiskFullError:
        return False
    return len(lines) == MAX_LINES or len(run) < len(lines)


def bounded_run(lines: list[Line]) -> list[Line]:
    """The lines that fit into one upload: contiguous in number, bounded in bytes."""
    run: list[Line] = []
    total_bytes = 0
    for line in lines:
        total_bytes += len(line.text.encode()) + LINE_OVERHEAD_BYTES
        if total_bytes > MAX_TEXT_BYTES or (run and line.number != run[-1].number + 1):
            break
        run.append(line)
    return run
