"""The back-ends as the conformance suite sees them. A new back-end joins by a class here and its name in SUBJECTS.

A subject is one device in a directory, laid by the real factory. It says how it is configured (``prepare``,
``tables``), what makes its environment unreadable, and, where others keep variables in it, how they write and read
theirs; ``close`` gives back what it took from the machine. Everything else the suite does through ``open_slots``, as
agent, supervisor and factory do.

RAUC is in EVERY and not in SUBJECTS: what it marks is written by a process of its own, whose steps are not ours to cut
in two. What is different about it, bundles, is in tests/integration/test_rauc_slots.py.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from device.backend import SlotSystem, open_slots
from device.bootenv import SlotName
from device.config import load_device_config
from device.factory import Equipment, equip
from device.firmware import Firmware
from device.slots.rauc_board import RaucBoard
from tests.rauc_kit import RAUC_TOML, BundleKey
from wavemesh.runtime.durable import SECTOR_BYTES, Disk
from wavemesh.trust.statements import Digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
CAPACITY_BYTES = 4 * MIB
LOSSY_BYTES = MIB
BASE = """\
[device]
device_class = "pos-tablet"
hardware_revision = "r2"
[hub]
address = "127.0.0.1:1"
"""


def image_of(seed: int, size_bytes: int = MIB) -> bytes:
    return Random(seed).randbytes(size_bytes)  # content, not a secret


def digest_of(content: bytes) -> Digest:
    return Digest(hashlib.sha256(content).hexdigest(), len(content))


OLD, NEW = image_of(1), image_of(2)


def run(*command: str | Path, at: Path | None = None) -> str:
    """What a real tool says, in that directory; it must succeed."""
    return subprocess.run(command, cwd=at, check=True, capture_output=True, text=True, timeout=20).stdout


class Subject(ABC):
    """A device that its factory laid: OLD on slot A, active, config generation 1."""

    backend: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def lay(self) -> None:
        """What happens to a device before it leaves the factory."""
        self.slots_directory.mkdir(parents=True)
        (self.directory / "run").mkdir()
        self.prepare()
        board = f'[board]\nbackend = "{self.backend}"\nslot_capacity_bytes = {CAPACITY_BYTES}\n'
        (self.directory / "config.toml").write_text(BASE + board + self.tables())
        image = self.directory / "old"
        image.write_bytes(OLD)
        equip(self.directory, Equipment(image, "firmware-v1", "1.0.0", b"{}", "1.0.0"))

    @property
    def slots_directory(self) -> Path:
        return self.directory / "slots"

    def prepare(self) -> None:  # noqa: B027  # most need nothing
        """Before the device is configured."""

    def tables(self) -> str:
        """Tables of config.toml beyond what every device has."""
        return ""

    def open(self, disk: Disk | None = None) -> SlotSystem:
        """As a start finds it."""
        return open_slots(self.directory, load_device_config(self.directory), disk or Disk())

    def lose_unflushed(self) -> None:
        """The power fails, as far as the slots' bytes go."""
        Firmware(self.directory, self.open(), LOSSY_BYTES).lose_unflushed()

    @abstractmethod
    def corrupt(self) -> None:
        """Make the boot environment unreadable."""

    def set_foreign(self, value: str) -> None:
        """Give somebody else's variable that value."""
        raise NotImplementedError

    def foreign(self) -> str:
        """Its value."""
        raise NotImplementedError

    def trust(self, slot: SlotName) -> None:  # noqa: B027  # the same
        """Make a slot one that may be armed, where a boot control looks at that."""

    def close(self) -> None:  # noqa: B027  # the same
        """Give back what was taken from the machine."""


class Simulated(Subject):
    backend = "simulated"

    def corrupt(self) -> None:
        (self.slots_directory / "bootenv.json").write_bytes(b"{}")


class GrubFiles(Subject):
    backend = "grub"

    @property
    def block(self) -> Path:
        return self.slots_directory / "grubenv"

    def corrupt(self) -> None:
        with self.block.open("r+b") as file:
            file.write(b"\0" * SECTOR_BYTES)

    def set_foreign(self, value: str) -> None:
        run("grub-editenv", self.block, "set", f"saved_entry={value}")

    def foreign(self) -> str:
        listed = run("grub-editenv", self.block, "list")
        return dict(line.split("=", 1) for line in listed.splitlines())["saved_entry"]


class UbootFiles(Subject):
    """With scripts of the board in the environment, as there always are: it is larger than a sector."""

    backend = "uboot"

    def lay(self) -> None:
        super().lay()
        for number in ("1", "2"):  # once for each copy
            self._fw("fw_setenv", "bootscript", "load mmc 0:1; " * 200 + number)

    def _fw(self, tool: str, *words: str) -> str:
        return run(tool, "-c", self.fw_env_config, *words, at=self.slots_directory)

    @property
    def fw_env_config(self) -> Path:
        return self.slots_directory / "fw_env.config"

    def corrupt(self) -> None:
        line = next(line for line in self.fw_env_config.read_text().splitlines() if not line.startswith("#"))
        with (self.slots_directory / line.split()[0]).open("r+b") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(0)
            file.write(os.urandom(size_bytes))

    def set_foreign(self, value: str) -> None:
        self._fw("fw_setenv", "bootdelay", value)

    def foreign(self) -> str:
        return self._fw("fw_printenv", "-n", "bootdelay").strip()


class LoopSlots(Subject):
    """Slots on real block devices."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.devices: list[str] = []

    def prepare(self) -> None:
        self.attach("a", CAPACITY_BYTES)
        self.attach("b", CAPACITY_BYTES)

    def attach(self, name: str, size_bytes: int) -> None:
        backing = self.directory / f"{name}.disk"
        backing.touch()
        os.truncate(backing, size_bytes)
        self.devices.append(attach_loop(backing))

    def tables(self) -> str:
        first, second = self.devices[:2]
        return f'[slots]\na = "{first}"\nb = "{second}"\n'

    def close(self) -> None:
        for device in self.devices:
            run("losetup", "--detach", device)


class GrubLoops(LoopSlots, GrubFiles):
    """GRUB's block in a file, as always."""


class UbootLoops(LoopSlots, UbootFiles):
    """Both copies of the environment on a block device too, the second one counted from its end."""

    def prepare(self) -> None:
        super().prepare()
        self.attach("env", 64 * 1024)
        line = f"{self.devices[-1]} %s 0x4000\n"
        self.fw_env_config.write_text("# the two copies\n" + line % "0x0" + line % "-0x4000")


class ServedByRauc(Simulated):
    """Marked by the real service, on a bus of its own."""

    backend = "rauc"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._board: RaucBoard | None = None

    def lay(self) -> None:
        super().lay()
        self._board = RaucBoard(self.directory, load_device_config(self.directory))
        self._board.start(SlotName.A)

    def tables(self) -> str:
        return RAUC_TOML

    def prepare(self) -> None:
        (self.directory / "rauc").mkdir()
        shutil.copyfile(BundleKey.make(self.directory).certificate, self.directory / "rauc" / "keyring.pem")

    def trust(self, slot: SlotName) -> None:
        (self.slots_directory / f"{slot.value}.json").write_bytes((self.slots_directory / "A.json").read_bytes())

    def close(self) -> None:
        if self._board is not None:
            self._board.stop()


def attach_loop(backing: Path) -> str:
    """A loop device, writable even if its last user left it read-only."""
    device = run("losetup", "--find", "--show", backing).strip()
    run("blockdev", "--setrw", device)
    return device


def loops_work() -> bool:
    """Whether this machine gives us loop devices: root, outside most containers."""
    return os.geteuid() == 0 and Path("/dev/loop-control").exists() and bool(list(Path("/dev").glob("loop[0-9]*")))


@contextmanager
def standing(make: Callable[[Path], Subject], directory: Path) -> Iterator[Subject]:
    """A device, for as long as it is looked at."""
    subject = make(directory)
    try:
        subject.lay()
        yield subject
    finally:
        subject.close()


SUBJECTS: dict[str, Callable[[Path], Subject]] = {
    "simulated": Simulated,
    "grub": GrubFiles,
    "uboot": UbootFiles,
    **({"grub-loop": GrubLoops, "uboot-loop": UbootLoops} if loops_work() else {}),
}
EVERY: dict[str, Callable[[Path], Subject]] = SUBJECTS | ({"rauc": ServedByRauc} if loops_work() else {})
WITH_FOREIGN = [name for name in SUBJECTS if name != "simulated"]
