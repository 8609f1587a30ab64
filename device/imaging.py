"""An image on its way from the hub into the slot that does not run, until it reads back as signed.

The image streams straight into the slot. Every ``fsync_step_bytes`` what was written is flushed, read back from the
medium and hashed, while the next steps are received and written; in the end the hash of all that was read back is
compared with the signed digest. Progress is announced before the step it belongs to is flushed. Wrong bytes are
fetched once more from the start, then refused as ``checksum``. When the link breaks, what came is synced, and the next
attempt goes on there.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wavemesh.errors import GateError, PeerError, WavemeshError
from wavemesh.policy.gates import Gate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from device.bootenv import SlotName
    from device.platform import Destination, SlotWriter
    from wavemesh.artifacts.download import BlobReader
    from wavemesh.trust.statements import Digest

FRAMES_IN_FLIGHT = 8
SYNCS_IN_FLIGHT = 2
TRIES = 2


@dataclass(frozen=True, slots=True)
class Imaging:
    """Puts images on one slot. ``staged`` hears how many bytes are written, after each frame; ``alert`` what is odd."""

    artifacts: BlobReader
    slots: Destination
    slot: SlotName
    fsync_step_bytes: int
    staged: Callable[[int], Awaitable[None]]
    alert: Callable[[str], None]

    async def put(self, image: Digest) -> None:
        """Write and read back; raises GateError (checksum) when the bytes are wrong twice, PeerError, LocalError."""
        found = ""
        for _ in range(TRIES):
            writer = await self.slots.begin(self.slot, image)
            try:
                await self._fill(writer, image)
                await writer.sync()
                found = writer.read_back
            finally:
                await writer.close()
            if found == image.sha256:
                return
            self.alert(f"slot {self.slot.value} reads back {found}, signed is {image.sha256}")
            await self.slots.discard(self.slot)
        msg = f"slot {self.slot.value} reads back SHA-256 {found}, signed is {image.sha256}"
        raise GateError(Gate.CHECKSUM.value, msg)

    async def _fill(self, writer: SlotWriter, image: Digest) -> None:
        """Stream from the writer's offset to the end; frames are read ahead, so no side waits for the other."""
        await self.staged(writer.offset)
        frames = _Frames()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read_ahead(image, writer.offset, frames))
            error = await self._drain(frames, writer, group)
            reading.cancel()
        if isinstance(error, PeerError):
            await writer.sync()  # what came before the link broke is not fetched again
        if error is not None:
            raise error

    async def _read_ahead(self, image: Digest, offset: int, frames: _Frames) -> None:
        try:
            async with aclosing(self.artifacts.read(image, offset)) as pieces:
                async for piece in pieces:
                    await frames.put(piece)
        except WavemeshError as error:
            frames.end(error)
        else:
            frames.end(None)

    async def _drain(self, frames: _Frames, writer: SlotWriter, group: asyncio.TaskGroup) -> WavemeshError | None:
        """Write what comes, with steps being synced beside it; returns what ended it too early."""
        next_sync = writer.offset + self.fsync_step_bytes
        syncs: deque[asyncio.Task[WavemeshError | None]] = deque(maxlen=SYNCS_IN_FLIGHT)
        error: WavemeshError | None = None
        while error is None and (pieces := await frames.take(next_sync - writer.offset)):
            error = await _caught(writer.write(*pieces))
            await self.staged(writer.offset)
            if error is None and writer.offset >= next_sync:
                error = await syncs.popleft() if len(syncs) == SYNCS_IN_FLIGHT else None
                syncs.append(group.create_task(_caught(writer.sync())))
                next_sync = writer.offset + self.fsync_step_bytes
        for sync in syncs:
            error = error or await sync
        return error or frames.error


class _Frames:
    """What has arrived and is not written yet, at most FRAMES_IN_FLIGHT; several are written in one step."""

    def __init__(self) -> None:
        self.error: WavemeshError | None = None
        self._pieces: deque[memoryview] = deque(maxlen=FRAMES_IN_FLIGHT)
        self._is_over = False
        self._filled, self._emptied = asyncio.Event(), asyncio.Event()

    async def put(self, piece: memoryview) -> None:
        """Add a frame, once there is room."""
        while len(self._pieces) >= FRAMES_IN_FLIGHT:
            self._emptied.clear()
            await self._emptied.wait()
        self._pieces.append(piece)
        self._filled.set()

    def end(self, error: WavemeshError | None) -> None:
        """Nothing more comes."""
        self._is_over, self.error = True, error
        self._filled.set()

    async def take(self, wanted_bytes: int) -> list[memoryview]:
        """What is there, until it is as much as is wanted; at least one frame, none at the end."""
        await self._filled.wait()
        taken: list[memoryview] = []
        while self._pieces and wanted_bytes > 0:
            taken.append(self._pieces.popleft())
            wanted_bytes -= len(taken[-1])
        if not self._pieces and not self._is_over:
            self._filled.clear()
        self._emptied.set()
        return taken


async def _caught(work: Awaitable[None]) -> WavemeshError | None:
    """What went wrong, as a value: an error raised in a task would reach the caller in a group of errors."""
    try:
        await work
    except WavemeshError as error:
        return error
    return None
