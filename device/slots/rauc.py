"""Slots that RAUC writes and marks: the agent brings the bundle, asks, and believes what it reads back.

Layout, in ``DIR/rauc``: ``update.raucb`` is the bundle on its way in, ``update.mark`` how much of it is durable,
``request.json`` what RAUC's next mark may do (device/slots/rauc_handler.py). Labels are with the slots' other papers.

Rules. Space for the whole bundle is taken before its first byte. Before RAUC is asked to install, it must take the same
slot for the running one and the same device for the other one as we do, nothing may boot that slot any more, and its
label is gone: whatever happens then, a slot without a label is trusted by nobody. RAUC's word that it is done is no
reason to label it; the digest of what the medium holds is (device/staging.py). What gives trust to a slot (arm, commit)
goes through RAUC, so that its own records agree, and is read back; what takes it away, or goes back to the last known
good, is written at once, for a rollback waits for nobody.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING

from device.bootenv import BootEnvironmentError, SlotName
from device.offload import Worker
from device.slots.environments import StoredEnvironment
from device.slots.images import ImageWriter, Mark, SlotError
from device.slots.rauc_board import lay_out
from device.slots.rauc_handler import MarkRequest, request_path
from device.slots.rauc_service import RaucClient, RaucError, RaucGoneError, RaucState, gate_of
from device.slots.raw import RawSlots
from device.values import to_plain
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from device.bootenv import Boot, BootEnvironment
    from device.config import DeviceConfig, Rauc
    from device.platform import SlotLabel
    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.statements import Digest

POLL_S = 0.2
TRIES = 2


class RaucBootControl(StoredEnvironment):
    """The boot environment of ``stored``, armed and committed by RAUC's marks."""

    def __init__(self, stored: StoredEnvironment, slots: RaucSlots, disk: Disk, config: Rauc, bus: str) -> None:
        """``bus`` is the address of RAUC's bus."""
        super().__init__(redundant_bootloader=stored.redundant_bootloader)
        self._stored = stored
        self._slots = slots
        self._request = request_path(config.directory)
        self._disk = disk
        self._bus = bus

    def read(self) -> BootEnvironment:
        """The environment on the medium; raises BootEnvironmentError, DiskFaultError."""
        return self._stored.read()

    def write(self, environment: BootEnvironment) -> None:
        """Replace it as a whole."""
        self._stored.write(environment)

    def arm(self, boot: Boot) -> None:
        """Try this once at the next boot; blocks. Raises BootEnvironmentError, DiskFaultError."""
        if boot == self.read().previous:  # the way back of a rollback
            super().arm(boot)
            return
        if not self._slots.version(boot.slot):
            raise BootEnvironmentError(f"slot {boot.slot.value} was written by somebody else since it was verified")
        self._mark(RaucState.ACTIVE, boot)
        trial = self.read().trial
        if trial is None or trial.boot != boot:
            raise BootEnvironmentError(f"RAUC said that it made slot {boot.slot.value} active, and nothing is armed")

    def commit(self) -> None:
        """The trial is the active boot now; blocks. Raises BootEnvironmentError, DiskFaultError."""
        trial = self.read().trial
        if trial is None:
            raise BootEnvironmentError("nothing is on trial")
        self._mark(RaucState.GOOD, trial.boot)
        if self.read().active != trial.boot:
            raise BootEnvironmentError(
                f"RAUC said that slot {trial.boot.slot.value} is good, and nothing was committed"
            )

    def _mark(self, state: RaucState, boot: Boot) -> None:
        request = MarkRequest(state.value, boot, self.read().sequence)
        self._disk.write_atomic(self._request, json.dumps(to_plain(request)).encode())
        try:
            client = RaucClient(self._bus)
            try:
                client.mark(state, boot.slot.value)
            finally:
                client.close()
        except RaucError as error:
            raise BootEnvironmentError(f"slot {boot.slot.value} was not marked {state.value}: {error}") from error
        finally:
            self._disk.remove(self._request)


class RaucSlots(RawSlots):
    """Two devices that RAUC writes; ``begin`` takes the release's bundle instead of its image."""

    def __init__(self, directory: Path, config: DeviceConfig, disk: Disk, stored: StoredEnvironment, bus: str) -> None:
        """``directory`` is the device's; raises SlotError."""
        paths = {SlotName.A: config.slots.a, SlotName.B: config.slots.b}
        super().__init__(paths, directory / "slots", disk, stored, config.board.slot_capacity_bytes)
        self._bundle = config.rauc.directory / "update.raucb"
        self._bundle_mark = config.rauc.directory / "update.mark"
        self._config = config
        self._device = directory
        self._bus = bus

    def lay(self, image: Path, label: SlotLabel) -> None:
        """What a factory does; for a board that a supervisor plays, RAUC's own configuration too."""
        super().lay(image, label)
        if not self._config.rauc.bus:
            lay_out(self._device, self._config)

    async def begin(self, slot: SlotName, image: Digest) -> ImageWriter:
        """Go on receiving this bundle, or start; the slot stays as it is until ``install``.

        Raises SlotError, DiskFullError, DiskFaultError.
        """
        self._check_other(slot)
        if not self.capacity_bytes(slot):
            raise SlotError(f"slot {slot.value} ({self.path(slot)}) is absent")
        self._disk.make_dir(self._bundle.parent)
        writer = ImageWriter(
            self._bundle, self._bundle_mark, self._disk, image, lambda: self._open_bundle(image.size_bytes)
        )
        with disk_errors(self._bundle):
            self._bundle.touch(mode=0o600)
        await writer.open()
        return writer

    async def discard(self, slot: SlotName) -> None:  # noqa: ARG002  # there is one bundle
        """Forget how far the bundle came."""
        self._disk.remove(self._bundle_mark)

    async def seal(self, slot: SlotName, label: SlotLabel) -> None:
        """Label the slot; the bundle is not needed any more."""
        await super().seal(slot, label)
        self._disk.remove(self._bundle_mark)
        self._disk.remove(self._bundle)

    async def install(self, slot: SlotName, image: Digest, installed: Callable[[int], Awaitable[None]]) -> None:
        """Let RAUC put the received bundle on the slot; ``installed`` hears how many percent it says are done.

        Raises GateError with RAUC's own words, SlotError, DiskFaultError.
        """
        for tries_left in reversed(range(TRIES)):
            try:
                async with Worker() as worker:
                    client = await worker.run(RaucClient, self._bus)
                    try:
                        await self._install(worker, client, slot, image, installed)
                    finally:
                        await worker.run(client.close)
            except RaucGoneError as error:
                if not tries_left:
                    raise GateError(Gate.DISK.value, str(error)) from error
            except RaucError as error:
                raise GateError(Gate.DISK.value, str(error)) from error
            else:
                return

    async def _install(
        self,
        worker: Worker,
        client: RaucClient,
        slot: SlotName,
        image: Digest,
        installed: Callable[[int], Awaitable[None]],
    ) -> None:
        patience_s = self._config.rauc.install_timeout_s
        deadline_s = time.monotonic() + patience_s
        while await worker.run(client.is_busy):  # with what an agent began that was killed since, or somebody else
            if time.monotonic() > deadline_s:
                raise RaucError("RAUC installs something else and does not end: rauc status")
            await worker.run(client.finished, POLL_S)
        await worker.run(self._check_agreement, client, slot)
        self._give_up(slot, image)
        await worker.run(client.install, self._bundle.resolve())
        while (is_good := await worker.run(client.finished, POLL_S)) is None:
            if time.monotonic() > deadline_s:
                raise RaucError(f"RAUC did not install the bundle within {patience_s:g} s")
            await installed(await worker.run(client.percent))
        if not is_good:
            last_error = await worker.run(client.last_error)
            raise GateError(gate_of(last_error).value, f"RAUC: {last_error or 'failed without a word'}")
        await worker.run(_flush, self.path(slot))

    def _check_agreement(self, client: RaucClient, slot: SlotName) -> None:
        """Raise GateError unless RAUC would write the very slot that we mean, and no other."""
        booted, devices = client.booted(), client.devices()
        ours = {one.value: os.path.realpath(self.path(one)) for one in SlotName}
        theirs = {name: os.path.realpath(device) for name, device in devices.items()}
        if booted != slot.other.value or theirs != ours:
            msg = f"RAUC runs from {booted or 'nowhere'} and has slots {theirs}; we run from {slot.other.value}"
            raise GateError(Gate.DUAL_PARTITION.value, f"{msg} and have {ours}: make system.conf and config.toml agree")

    def _give_up(self, slot: SlotName, image: Digest) -> None:
        """From here on the slot holds nothing of worth, and nothing of the new image is durable yet."""
        self._check_other(slot)
        self._check_unused(slot)
        if image.size_bytes > self.capacity_bytes(slot):
            raise SlotError(f"slot {slot.value} ({self.path(slot)}) cannot hold {image.size_bytes} bytes")
        self._forget(slot)
        mark = Mark(image.sha256, image.size_bytes, 0, "")
        self._disk.write_atomic(self._mark_path(slot), json.dumps(to_plain(mark)).encode(), 0o644)

    def _open_bundle(self, size_bytes: int) -> int:
        with disk_errors(self._bundle):
            descriptor = os.open(self._bundle, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(descriptor, size_bytes)
                os.posix_fallocate(descriptor, 0, max(size_bytes, 1))
            except OSError:
                os.close(descriptor)
                raise
        return descriptor


def _flush(path: Path) -> None:
    """RAUC's writes are on the medium before it is read."""
    with disk_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
