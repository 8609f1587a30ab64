"""A board with RAUC: its slots as the agent reads and restores them, and RAUC's marks beside our boot environment.

Rules. The boot environment is written for every transition, whatever RAUC says. What gives trust to a slot (arm,
commit) is done through RAUC first, so that its own records agree; what it does not do, or is not there to do, is
written without it, for what was verified stays verified. What takes trust away, or goes back to the last known good,
never asks it. A slot whose label RAUC's handler removed was written by somebody else and is not armed.
"""

from __future__ import annotations

import json
import logging
import time
from typing import TYPE_CHECKING

from device.bootenv import BootEnvironmentError, SlotName
from device.offload import Worker
from device.slots.environments import StoredEnvironment
from device.slots.images import ImageWriter, Mark, SlotError
from device.slots.rauc_board import lay_out
from device.slots.rauc_handler import MarkRequest, request_path
from device.slots.rauc_service import POLL_S, RaucClient, RaucError, RaucState
from device.slots.raw import RawSlots
from device.values import to_plain

if TYPE_CHECKING:
    from pathlib import Path

    from device.bootenv import Boot, BootEnvironment
    from device.config import DeviceConfig, Rauc
    from device.platform import SlotLabel
    from wavemesh.runtime.durable import Disk
    from wavemesh.trust.statements import Digest

_log = logging.getLogger(__name__)


class RaucBootControl(StoredEnvironment):
    """The boot environment of ``stored``; arm and commit by RAUC's marks."""

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
        environment = self.read()
        if boot != environment.previous:  # else the way back of a rollback
            if not self._slots.version(boot.slot):
                raise BootEnvironmentError(f"slot {boot.slot.value} was written by somebody else since it was verified")
            self._mark(RaucState.ACTIVE, boot, environment)
        if self.read() == environment:
            super().arm(boot)

    def commit(self) -> None:
        """The trial is the active boot now; blocks. Raises BootEnvironmentError, DiskFaultError."""
        environment = self.read()
        if environment.trial is not None:
            self._mark(RaucState.GOOD, environment.trial.boot, environment)
        if self.read() == environment:
            super().commit()

    def _mark(self, state: RaucState, boot: Boot, environment: BootEnvironment) -> None:
        """Ask RAUC; that it did not is a matter for its log and ours."""
        request = MarkRequest(state.value, boot, environment.sequence)
        self._disk.write_atomic(self._request, json.dumps(to_plain(request)).encode())
        try:
            client = RaucClient(self._bus)
            try:
                client.mark(state, boot.slot.value)
            finally:
                client.close()
        except RaucError as error:
            _log.warning("slot %s is marked %s without RAUC: %s", boot.slot.value, state.value, error)
        finally:
            self._disk.remove(self._request)


class RaucSlots(RawSlots):
    """Two devices that RAUC installs to. The agent itself writes one only to restore a packed image."""

    def __init__(self, directory: Path, config: DeviceConfig, disk: Disk, stored: StoredEnvironment, bus: str) -> None:
        """``directory`` is the device's; raises SlotError."""
        paths = {SlotName.A: config.slots.a, SlotName.B: config.slots.b}
        super().__init__(paths, directory / "slots", disk, stored, config.board.slot_capacity_bytes)
        self._config = config
        self._device = directory
        self._bus = bus

    def lay(self, image: Path, label: SlotLabel) -> None:
        """What a factory does; for a board that a supervisor plays, RAUC's own configuration too."""
        super().lay(image, label)
        if not self._config.rauc.bus:
            lay_out(self._device, self._config)

    async def begin(self, slot: SlotName, image: Digest) -> ImageWriter:
        """Go on writing this image to the slot itself, once RAUC writes nothing any more; raises as RawSlots."""
        try:
            async with Worker() as worker:
                client = await worker.run(RaucClient, self._bus)
                try:
                    await await_idle(worker, client, self._config.rauc.install_timeout_s)
                finally:
                    await worker.run(client.close)
        except RaucError as error:
            _log.warning("slot %s is restored without asking RAUC: %s", slot.value, error)
        return await super().begin(slot, image)

    def give_up(self, slot: SlotName, image: Digest) -> None:
        """From here on the slot holds nothing of worth, and nothing of the new image is durable yet.

        Raises SlotError, BootEnvironmentError, DiskFaultError.
        """
        self.check_other(slot)
        self._check_unused(slot)
        if image.size_bytes > self.capacity_bytes(slot):
            raise SlotError(f"slot {slot.value} ({self.path(slot)}) cannot hold {image.size_bytes} bytes")
        self._forget(slot)
        mark = Mark(image.sha256, image.size_bytes, 0, "")
        self._disk.write_atomic(self._mark_path(slot), json.dumps(to_plain(mark)).encode(), 0o644)


async def await_idle(worker: Worker, client: RaucClient, patience_s: float) -> None:
    """Wait for what an agent began that was killed since, or somebody else; raises RaucError when it does not end."""
    deadline_s = time.monotonic() + patience_s
    while await worker.run(client.is_busy):
        if time.monotonic() > deadline_s:
            raise RaucError("RAUC installs something else and does not end: rauc status")
        await worker.run(client.finished, POLL_S)
