"""STAGING: from order to a verified slot.

Order of work: a good image that is about to be overwritten is packed, for a second rollback; the release's signature
bundle is fetched and verified; the image goes onto the slot that does not run
and is read back from the medium (imaging.py); the slot is labelled; the config bundle goes to its generation; the boot
probe looks at the slot. A slot that already holds the image is only read back. Meanwhile heat and power are watched,
and trouble pauses the write.

Where an installer writes the slot (RAUC), it is given the release's RAUC bundle, fetched the same way, and what it
wrote is read back and compared with the signed image, as if its word were worth nothing. Receiving is the first half of
what is shown as staged, installing the second.

A link that fails is waited for: the mark on the slot says where to go on. But bytes that trickle, stand still or are
more than was signed are no progress, whoever is to blame: fewer than ``progress_bytes`` new ones in ``progress_s`` end
in the word ``byte-budget``, after which the next look goes on at the mark. A hub that refuses by gate refuses for this
device.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from device.imaging import TRIES, Imaging
from device.lkg import Packed, PackError
from device.offload import Worker
from device.platform import SlotLabel
from device.progress import Event, GateRefused, Obstructed, Staged
from wavemesh.artifacts.transfer import BadTransferError
from wavemesh.errors import GateError, PeerError
from wavemesh.policy.gates import Gate
from wavemesh.runtime.durable import DiskFaultError
from wavemesh.trust.releases import MAX_BUNDLE_BYTES, verify_signature_bundle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from device.equipment import Equipment
    from device.platform import Destination, Installer, Slots
    from device.progress import Target
    from wavemesh.trust.statements import Digest


class Staging:
    """The work of one STAGING."""

    def __init__(self, equipment: Equipment, target: Target, staged: Callable[[int], None]) -> None:
        """``staged`` hears how many bytes of the image are written."""
        self._equipment = equipment
        self._target = target
        self._staged = staged
        self._bundles: dict[Digest, bytes] = {}
        self._percent = -1
        self._arrived_bytes = self._image_offset = self._config_offset = 0
        self._problem = ""

    async def run(self) -> Event:
        """Work until it is staged, refused or obstructed."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(task) for task in (self._work(), self._watch(), self._keep_pace())]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
        return next(task.result() for task in tasks if task in done)

    async def _watch(self) -> Event:
        while True:
            finding = await self._equipment.gates.flashing_refusal(self._target.rules)
            if finding is not None:
                return Obstructed(*finding.words)
            await asyncio.sleep(self._equipment.config.timing.gate_interval_s)

    async def _keep_pace(self) -> Event:
        """Return when too little came."""
        pace = self._equipment.config.staging
        while True:
            before = self._arrived_bytes
            await asyncio.sleep(pace.progress_s)
            came = self._arrived_bytes - before
            if came < pace.progress_bytes:
                why = f"{came} new bytes came in {pace.progress_s:g} s, at least {pace.progress_bytes} are wanted"
                return GateRefused(Gate.BYTE_BUDGET.value, f"{why}: {self._problem or 'they come too slowly'}")

    async def _work(self) -> Event:
        while True:
            try:
                return await self._stage()
            except GateError as error:
                return GateRefused(error.gate, str(error), error.observed, error.required)
            except DiskFaultError as error:
                return GateRefused(Gate.DISK.value, str(error))
            except PeerError as error:
                self._note_problem(error)
                await asyncio.sleep(self._equipment.config.timing.retry_interval_s)

    def _note_problem(self, error: PeerError) -> None:
        if str(error) == self._problem:
            return
        self._problem = str(error)
        self._equipment.log.alert(f"staging waits for the hub: {error}")
        if isinstance(error, BadTransferError):
            self._equipment.store.tell_refusal(f"blob/{self._target.release}", "", f"{error.reason}: {error}")

    async def _stage(self) -> Event:
        target, slots = self._target, self._equipment.slots
        is_there = target.firmware is None or await self._already_there(target.firmware)
        if not is_there:
            await self._keep_lkg()
        async with self._equipment.artifacts.transfer():
            with self._equipment.tracing.check("verify"):
                await self._verify_bundle()
            if target.firmware is not None and not is_there:
                await self._put_firmware(target.firmware)
                await slots.seal(target.boot.slot, SlotLabel(target.release, target.version, target.firmware))
                if self._equipment.installer is not None:
                    await self._equipment.installer.discard(target.boot.slot)
            if target.config is not None:
                await self._put_config(target.config)
        if target.rules.boot_probe:
            extra = staged_facts(slots, target)
            finding = await self._equipment.probes.run(Gate.BOOT_PROBE.value, target.rules.boot_probe, extra)
            if not finding.passes:
                return GateRefused(*finding.words)
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
        if digest not in self._bundles:  # read once, however often the link breaks; verified each time
            bundle = bytearray()
            async with aclosing(self._equipment.artifacts.read(digest)) as pieces:
                async for piece in pieces:
                    bundle += piece
            self._bundles = {digest: bytes(bundle)}
        verify_signature_bundle(self._bundles[digest], release, trusted)

    # --- the last known good -----------------------------------------------------------------------------------------

    async def _keep_lkg(self) -> None:
        """Pack what the environment calls previous, if that is what will be overwritten; raises GateError (disk)."""
        equipment, target = self._equipment, self._target
        previous = equipment.boot_control.read().previous
        label = equipment.slots.label(target.boot.slot)
        if previous is None or previous.slot is not target.boot.slot or label is None:
            return
        try:
            with equipment.tracing.check("pack"):
                await self._pack(Packed(label, previous.config_generation))
        except (DiskFaultError, PackError) as error:
            why = f"no second rollback after this update: {label.version} could not be packed: {error}"
            if target.rules.require_packed_lkg:
                raise GateError(Gate.DISK.value, why) from error
            equipment.log.alert(why)
            equipment.store.append_event("lkg-not-packed", Gate.DISK.value, f"slot/{previous.slot.value}", why)

    async def _pack(self, packed: Packed) -> None:
        equipment, target = self._equipment, self._target
        lkg, slot = equipment.lkg, target.boot.slot
        if lkg.held() == packed and await lkg.is_whole():
            return
        config_bytes = target.config.size_bytes if target.config is not None else 0
        kept_free = target.rules.min_free_disk_bytes + config_bytes + equipment.config.board.reserved_disk_bytes
        await lkg.pack(equipment.slots.path(slot), packed, kept_free)
        equipment.log.note(f"packed {packed.label.version} from slot {slot.value} for a second rollback")

    # --- the image ---------------------------------------------------------------------------------------------------

    async def _already_there(self, image: Digest) -> bool:
        slots, slot = self._equipment.slots, self._target.boot.slot
        label = slots.label(slot)
        if label is None or label.firmware != image:
            return False
        self._staged(image.size_bytes)
        return await slots.digest(slot, image.size_bytes) == image.sha256

    async def _put_firmware(self, image: Digest) -> None:
        installer, bundle = self._equipment.installer, self._target.bundle
        if installer is None:
            await self._imaging(self._equipment.slots, lambda offset: self._note(offset, image)).put(image)
        elif bundle is None:
            msg = f"release {self._target.release} has no RAUC bundle, and RAUC writes the slots of this device"
            raise GateError(Gate.HARDWARE.value, msg)
        else:
            await self._install(installer, bundle, image)

    async def _install(self, installer: Installer, bundle: Digest, image: Digest) -> None:
        """Receive, install, read back; a slot that reads back wrong is installed once more, then refused."""
        slot, half, found = self._target.boot.slot, image.size_bytes // 2, ""
        share = half / max(bundle.size_bytes, 1)
        await self._imaging(installer, lambda offset: self._note(int(offset * share), image)).put(bundle)
        for _ in range(TRIES):
            await installer.install(slot, image, lambda percent: self._note(half + percent * half // 100, image))
            found = await self._equipment.slots.digest(slot, image.size_bytes)
            if found == image.sha256:
                return
            self._equipment.log.alert(f"slot {slot.value} was installed as {found}, signed is {image.sha256}")
        msg = f"slot {slot.value} was installed as SHA-256 {found}, signed is {image.sha256}"
        raise GateError(Gate.CHECKSUM.value, msg)

    def _imaging(self, destination: Destination, staged: Callable[[int], Awaitable[None]]) -> Imaging:
        equipment = self._equipment
        return Imaging(
            equipment.artifacts,
            destination,
            self._target.boot.slot,
            equipment.config.staging.fsync_step_bytes,
            staged=staged,
            alert=equipment.log.alert,
        )

    async def _note(self, offset: int, image: Digest) -> None:
        """Tell progress, and announce each whole percent to the board."""
        self._arrived_bytes += max(0, offset - self._image_offset)
        self._image_offset = offset
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
        reading = self._equipment.artifacts.read(config)
        async with Worker() as worker, aclosing(reading) as pieces, aclosing(self._note_config(pieces)) as noted:
            await configs.store(generation, self._target.config_version, config, noted, worker)
            environment, packed = self._equipment.boot_control.read(), self._equipment.lkg.held()
            boots = (self._equipment.record.boot, self._target.boot, environment.active, environment.previous, packed)
            configs.forget({boot.config_generation for boot in boots if boot is not None})

    async def _note_config(self, pieces: AsyncIterator[memoryview]) -> AsyncGenerator[memoryview, None]:
        """A bundle starts over when its link breaks; what came before is no progress."""
        offset = 0
        async for piece in pieces:
            offset += len(piece)
            self._arrived_bytes += max(0, offset - self._config_offset)
            self._config_offset = max(offset, self._config_offset)
            yield piece


def staged_facts(slots: Slots, target: Target) -> dict[str, str]:
    """What a boot probe is told of the slot that it looks at."""
    return {
        "WAVEMESH_INACTIVE_IMAGE": str(slots.path(target.boot.slot)),
        "WAVEMESH_STAGED_VERSION": target.version,
    }
