"""STAGING: from order to a verified slot.

Order of work: the release's signature bundle is fetched and verified; the image streams straight into the slot that
does not run, network, hash and disk overlapping; the config bundle goes to its generation; what is on the slot is read
back from the medium and compared with the signed digest; the slot is labelled; the boot probe looks at it. A slot that
already holds the image is only read back. Meanwhile heat and power are watched, and trouble pauses the write.

A link that fails is waited for, however long: the mark on the slot says where to go on. A hub that refuses by gate
refuses for this device. Wrong bytes are fetched once more from the start, then refused as ``checksum``.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeAlias

from device.gates import check_flashing
from device.offload import Worker
from device.platform import SlotLabel
from device.progress import Event, GateRefused, Obstructed, Staged
from wavemesh.errors import GateError, PeerError, WavemeshError
from wavemesh.policy.gates import Gate
from wavemesh.runtime.durable import DiskFaultError
from wavemesh.trust.releases import MAX_BUNDLE_BYTES, verify_signature_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

    from device.equipment import Equipment
    from device.platform import SlotWriter
    from device.progress import Target
    from wavemesh.trust.statements import Digest

FRAMES_IN_FLIGHT = 8

Frames: TypeAlias = "asyncio.Queue[memoryview | WavemeshError | None]"
TRIES = 2


class Staging:
    """The work of one STAGING."""

    def __init__(self, equipment: Equipment, target: Target, staged: Callable[[int], None]) -> None:
        """``staged`` hears how many bytes of the image are written."""
        self._equipment = equipment
        self._target = target
        self._staged = staged
        self._percent = -1

    async def run(self) -> Event:
        """Work until it is staged, refused or obstructed."""
        async with asyncio.TaskGroup() as group:
            work = group.create_task(self._work())
            watch = group.create_task(self._watch())
            done, _ = await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            work.cancel()
            watch.cancel()
        return work.result() if work in done else watch.result()

    async def _watch(self) -> Obstructed:
        while True:
            finding = check_flashing(self._equipment.sensors, self._target)
            if finding is not None:
                return Obstructed(finding.gate, finding.evidence)
            await asyncio.sleep(self._equipment.config.timing.gate_interval_s)

    async def _work(self) -> Event:
        while True:
            try:
                return await self._stage()
            except GateError as error:
                return GateRefused(error.gate, str(error))
            except DiskFaultError as error:
                return GateRefused(Gate.DISK.value, str(error))
            except PeerError as error:
                self._equipment.log.alert(f"staging waits for the hub: {error}")
                await asyncio.sleep(self._equipment.config.timing.retry_interval_s)

    async def _stage(self) -> Event:
        target, slots = self._target, self._equipment.slots
        async with self._equipment.artifacts.transfer():
            await self._verify_bundle()
            if target.firmware is not None and not await self._already_there(target.firmware):
                await self._put_image(target.firmware)
                await slots.seal(target.boot.slot, SlotLabel(target.release, target.version, target.firmware))
            if target.config is not None:
                await self._put_config(target.config)
        if target.rules.boot_probe:
            extra = {
                "WAVEMESH_INACTIVE_IMAGE": str(slots.path(target.boot.slot)),
                "WAVEMESH_STAGED_VERSION": target.version,
            }
            finding = await self._equipment.probes.run(Gate.BOOT_PROBE.value, target.rules.boot_probe, extra)
            if not finding.passes:
                return GateRefused(finding.gate, finding.evidence)
        return Staged()

    async def _verify_bundle(self) -> None:
        trusted = self._equipment.sink.trusted
        if trusted is None:
            msg = "trust metadata is not held any more"
            raise GateError(Gate.SIGNATURE.value, msg)
        release = trusted.require_release(self._target.release)
        digest = release.signature.digest
        if digest.size_bytes > MAX_BUNDLE_BYTES:
            msg = f"signature bundle {release.signature.name} has {digest.size_bytes} bytes"
            raise GateError(Gate.SIGNATURE.value, msg)
        bundle = bytearray()
        async with aclosing(self._equipment.artifacts.read(digest)) as pieces:
            async for piece in pieces:
                bundle += piece
        verify_signature_bundle(bytes(bundle), release, trusted)

    # --- the image ---------------------------------------------------------------------------------------------------

    async def _already_there(self, image: Digest) -> bool:
        slots, slot = self._equipment.slots, self._target.boot.slot
        label = slots.label(slot)
        if label is None or label.firmware != image:
            return False
        self._staged(image.size_bytes)
        return await slots.digest(slot, image.size_bytes) == image.sha256

    async def _put_image(self, image: Digest) -> None:
        """Write and read back; raises GateError (checksum) when the bytes are wrong twice."""
        slots, slot = self._equipment.slots, self._target.boot.slot
        found = ""
        for _ in range(TRIES):
            writer = await slots.begin(slot, image)
            try:
                await self._fill(writer, image)
            finally:
                await writer.close()
            found = await slots.digest(slot, image.size_bytes)
            if found == image.sha256:
                return
            self._equipment.log.alert(f"slot {slot.value} reads back {found}, signed is {image.sha256}")
            await slots.discard(slot)
        msg = f"slot {slot.value} reads back SHA-256 {found}, signed is {image.sha256}"
        raise GateError(Gate.CHECKSUM.value, msg)

    async def _fill(self, writer: SlotWriter, image: Digest) -> None:
        """Stream from the writer's offset to the end; frames are read ahead, so no side waits for the other."""
        await self._note(writer.offset, image)
        queue: Frames = asyncio.Queue(FRAMES_IN_FLIGHT)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read_ahead(image, writer.offset, queue))
            error = await self._drain(queue, writer, image)
            reading.cancel()
        await writer.sync()  # a link that broke costs no byte that arrived before
        if error is not None:
            raise error

    async def _read_ahead(self, image: Digest, offset: int, queue: Frames) -> None:
        end: WavemeshError | None = None
        try:
            async with aclosing(self._equipment.artifacts.read(image, offset)) as pieces:
                async for piece in pieces:
                    await queue.put(piece)
        except WavemeshError as error:
            end = error
        await queue.put(end)

    async def _drain(self, queue: Frames, writer: SlotWriter, image: Digest) -> WavemeshError | None:
        """Write what comes and flush every step; returns what ended it too early."""
        step_bytes = self._equipment.config.staging.fsync_step_bytes
        synced = writer.offset
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, WavemeshError):
                    return item
                await writer.write(item)
                if writer.offset - synced >= step_bytes:
                    await writer.sync()
                    synced = writer.offset
                await self._note(writer.offset, image)
        except WavemeshError as error:
            return error
        return None

    async def _note(self, offset: int, image: Digest) -> None:
        """Tell progress, and announce each whole percent to the board."""
        self._staged(offset)
        percent = offset * 100 // max(image.size_bytes, 1)
        if percent != self._percent:  # less, when it starts over
            self._percent = percent
            await self._equipment.power.step(f"staging:{percent}%")

    # --- the config --------------------------------------------------------------------------------------------------

    async def _put_config(self, config: Digest) -> None:
        generation, configs = self._target.boot.config_generation, self._equipment.configs
        label = configs.label(generation)
        if label is not None and label.sha256 == config.sha256:
            return
        async with Worker() as worker, aclosing(self._equipment.artifacts.read(config)) as pieces:
            await configs.store(generation, self._target.config_version, config, pieces, worker)
