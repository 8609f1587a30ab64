"""RAUC as the installer: the agent brings the bundle, asks, and believes what the slot reads back.

Layout, in ``DIR/rauc``: ``update.raucb`` is the bundle on its way in, ``update.mark`` how much of it is durable.

Rules. Space for the whole bundle is taken before its first byte. Before RAUC is asked to install, it must take the same
slot for the running one and the same device for the other one as we do, nothing may boot that slot any more, and its
label is gone: whatever happens then, a slot without a label is trusted by nobody. RAUC's word that it is done is no
reason to label it; the digest of what the medium holds is (device/staging.py).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from device.bootenv import SlotName
from device.offload import Worker
from device.slots.images import ImageWriter, SlotError
from device.slots.rauc import await_idle
from device.slots.rauc_service import POLL_S, RaucClient, RaucError, RaucGoneError, gate_of
from wavemesh.errors import GateError
from wavemesh.policy.gates import Gate
from wavemesh.runtime.durable import disk_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from device.config import Rauc
    from device.slots.rauc import RaucSlots
    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.statements import Digest

TRIES = 2


class RaucInstaller:
    """Bundles on their way to a slot, one at a time."""

    def __init__(self, slots: RaucSlots, config: Rauc, disk: Disk, bus: str) -> None:
        """``bus`` is the address of RAUC's bus."""
        self._slots = slots
        self._bundle = config.directory / "update.raucb"
        self._mark = config.directory / "update.mark"
        self._patience_s = config.install_timeout_s
        self._disk = disk
        self._bus = bus

    async def begin(self, slot: SlotName, image: Digest) -> ImageWriter:
        """Go on receiving this bundle for the slot, or start; the slot stays as it is until ``install``.

        Raises SlotError, DiskFullError, DiskFaultError.
        """
        self._slots.check_other(slot)
        if not self._slots.capacity_bytes(slot):
            raise SlotError(f"slot {slot.value} ({self._slots.path(slot)}) is absent")
        self._disk.make_dir(self._bundle.parent)
        with disk_errors(self._bundle):
            self._bundle.touch(mode=0o600)
        writer = ImageWriter(self._bundle, self._mark, self._disk, image, lambda: self._open(image.size_bytes))
        await writer.open()
        return writer

    async def discard(self, slot: SlotName) -> None:  # noqa: ARG002  # there is one bundle
        """Forget the bundle: it was wrong, or it is on its slot."""
        self._disk.remove(self._mark)
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
        await await_idle(worker, client, self._patience_s)
        await worker.run(self._check_agreement, client, slot)
        self._slots.give_up(slot, image)
        deadline_s = time.monotonic() + self._patience_s
        await worker.run(client.install, self._bundle.resolve())
        while (is_good := await worker.run(client.finished, POLL_S)) is None:
            if time.monotonic() > deadline_s:
                raise RaucError(f"RAUC did not install the bundle within {self._patience_s:g} s")
            await installed(await worker.run(client.percent))
        if not is_good:
            last_error = await worker.run(client.last_error)
            raise GateError(gate_of(last_error).value, f"RAUC: {last_error or 'failed without a word'}")
        await worker.run(_flush, self._slots.path(slot))

    def _check_agreement(self, client: RaucClient, slot: SlotName) -> None:
        """Raise GateError unless RAUC would write the very slot that we mean, and no other."""
        booted, devices = client.booted(), client.devices()
        ours = {one.value: os.path.realpath(self._slots.path(one)) for one in SlotName}
        theirs = {name: os.path.realpath(device) for name, device in devices.items()}
        if booted != slot.other.value or theirs != ours:
            msg = f"RAUC runs from {booted or 'nowhere'} and has slots {theirs}; we run from {slot.other.value}"
            raise GateError(Gate.DUAL_PARTITION.value, f"{msg} and have {ours}: make system.conf and config.toml agree")

    def _open(self, size_bytes: int) -> int:
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
