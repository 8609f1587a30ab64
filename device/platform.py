"""The hardware as the agent and a supervisor see it: small seams, one set of implementations per back-end.

``slots/simulated.py`` with the supervisor is the default; ``slots/raw.py`` with ``slots/grub.py`` or ``slots/uboot.py``
are slots on partitions or files; RAUC fits the same seams. Everything durable is durable when the call returns. Errors
are LocalErrors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from device.bootenv import Boot, ResetReason  # noqa: TC001  # device/values.py resolves the hints at run time
from wavemesh.trust.statements import Digest  # noqa: TC001  # the same

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from typing import NoReturn

    from device.bootenv import BootEnvironment, SlotName


@dataclass(frozen=True, slots=True)
class BootRecord:
    """What the board says about this boot; ``boot_id`` is 128 random bits in hex."""

    boot_id: str
    boot: Boot
    reset_reason: ResetReason


@dataclass(frozen=True, slots=True)
class SlotLabel:
    """What is on a slot, written after its content was verified; without a label a slot holds nothing of worth."""

    release: str
    version: str
    firmware: Digest


class Slots(Protocol):
    """The system partitions. Only the slot that is not running is ever written."""

    def present(self) -> bool:
        """Whether there really are two (refurbished hardware may lack the second)."""
        ...

    def capacity_bytes(self, slot: SlotName) -> int:
        """How large an image it can hold."""
        ...

    def path(self, slot: SlotName) -> Path:
        """The file or device with the slot's content, for reading."""
        ...

    def label(self, slot: SlotName) -> SlotLabel | None:
        """What is on it, None when that is not known to be complete."""
        ...

    async def begin(self, slot: SlotName, image: Digest) -> SlotWriter:
        """Go on writing this image to the slot from the last durable mark, or start; drops the label first."""
        ...

    async def digest(self, slot: SlotName, size_bytes: int) -> str:
        """SHA-256 of the first ``size_bytes`` read back from the medium, lower-case hex."""
        ...

    async def discard(self, slot: SlotName) -> None:
        """Forget how far a write came: its bytes turned out wrong."""
        ...

    async def seal(self, slot: SlotName, label: SlotLabel) -> None:
        """Label a slot whose content was verified."""
        ...


class Destination(Protocol):
    """Where what is fetched goes to: ``Slots``, or an ``Installer``."""

    async def begin(self, slot: SlotName, image: Digest) -> SlotWriter:
        """Go on from the last durable mark, or start."""
        ...

    async def discard(self, slot: SlotName) -> None:
        """Forget how far it came."""
        ...


class Installer(Destination, Protocol):
    """Who puts releases on slots where the agent does not: it takes the release's bundle."""

    async def install(self, slot: SlotName, image: Digest, installed: Callable[[int], Awaitable[None]]) -> None:
        """Have the bundle that came put on the slot as this image; ``installed`` hears the percent done.

        What the slot holds afterwards is for the caller to read. Raises GateError, LocalError.
        """
        ...


class SlotWriter(Protocol):
    """An image on its way into a slot."""

    @property
    def offset(self) -> int:
        """Bytes written so far, where the download goes on."""
        ...

    @property
    def read_back(self) -> str:
        """SHA-256, lower-case hex, of everything synced, as it was read back from the medium after it was flushed."""
        ...

    async def write(self, *pieces: bytes | memoryview) -> None:
        """Append all; not durable until ``sync``."""
        ...

    async def sync(self) -> None:
        """Make what is written by now durable, read it back and move the mark that a resume starts from.

        ``write`` and ``sync`` may be called meanwhile; syncs are done in their order.
        """
        ...

    async def close(self) -> None:
        """Release the medium; what was synced stays."""
        ...


class BootControl(Protocol):
    """The boot environment. Each write is one atomic, durable replacement; see device/bootenv.py for their meaning."""

    @property
    def redundant_bootloader(self) -> bool:
        """Whether payloads that touch the bootloader are written redundantly."""
        ...

    def read(self) -> BootEnvironment:
        """The environment as it is on the medium now."""
        ...

    def invalidate(self, slot: SlotName) -> None:
        """Nothing boots this slot any more."""
        ...

    def arm(self, boot: Boot) -> None:
        """Try this once at the next boot."""
        ...

    def keep_trying(self, tries: int) -> None:
        """The trial may boot again that often."""
        ...

    def disarm(self) -> None:
        """No trial any more."""
        ...

    def commit(self) -> None:
        """The trial is the active boot now."""
        ...

    def revert(self) -> None:
        """The trial, which a rollback went back to, is the active boot now, and nothing is previous."""
        ...


class Bootloader(Protocol):
    """The bootloader's own hands on the boot environment, for a supervisor that plays it, and a factory's."""

    def read(self) -> BootEnvironment:
        """The environment as it is on the medium now."""
        ...

    def attempt(self) -> None:
        """Take one try of the trial, before it boots."""
        ...

    def fall_back(self, reason: ResetReason) -> None:
        """Note what ended a trial that has no try left, as far as this bootloader can know."""
        ...

    def lay(self, environment: BootEnvironment) -> None:
        """The first one of a new device; replaces what is there."""
        ...


class Media(Protocol):
    """The slots' bytes in the hands of a factory, or of a supervisor that plays the board; nothing is remembered."""

    def lay(self, image: Path, label: SlotLabel) -> None:
        """Put the image on slot A of a new device, with its label; slot B is there and holds nothing of worth."""
        ...

    def path(self, slot: SlotName) -> Path:
        """The file or device with the slot's content."""
        ...

    def version(self, slot: SlotName) -> str:
        """Version on the slot's label, empty without one."""
        ...

    def unflushed(self, slot: SlotName) -> range:
        """The bytes of an unfinished image that a power cut may take; none when nothing is being written."""
        ...


class BoardServices(Protocol):
    """Programs beside the agent that a supervisor runs as part of the board it plays."""

    def start(self, slot: SlotName) -> None:
        """Run them anew, booted from this slot."""
        ...

    def stop(self) -> None:
        """End them as a power cut does."""
        ...


class Power(Protocol):
    """Board: boots, resets and the watchdog that lives outside the agent."""

    def boot(self) -> BootRecord:
        """The boot we are in."""
        ...

    def pet(self) -> None:
        """Tell the watchdog that the agent is alive."""
        ...

    async def step(self, name: str) -> None:
        """Announce a named step; a power injector may cut here. Returns at once on real hardware."""
        ...

    async def reboot(self) -> NoReturn:
        """Reset the board; does not return."""
        ...

    def stop(self) -> None:
        """The agent ends in order: nobody watches the board from now on."""
        ...


@dataclass(frozen=True, slots=True)
class Sensors:
    """Roots of the kernel's files that gates read; configurable, so that a simulated device has its own.

    ``reserved_disk_bytes`` of the data partition are for other software, however free they look.
    """

    power_supply: Path
    thermal: Path
    hwmon: Path
    inhibit: Path
    reserved_disk_bytes: int = 0
