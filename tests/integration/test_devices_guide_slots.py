"""docs/guide/devices.md, "GRUB" and "U-Boot", as a person types it, with this machine's loop devices for partitions."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from device.backend import open_slots
from device.bootenv import Boot, BootEnvironment, SlotName, Trial
from device.config import load_device_config
from tests.conformance.subjects import attach_loop, loops_work, run
from tests.conformance.test_bootloader_scripts import Booted, GrubBoard
from tests.integration.test_first_fleet import Shell, Step, steps
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "guide" / "devices.md"
SLOT_BYTES = 4 * 1024 * 1024
IDENTITY = '[device]\ndevice_class = "pos"\nhardware_revision = "r2"\n[hub]\naddress = "store-208:7420"\n'

pytestmark = pytest.mark.skipif(not loops_work(), reason="only root has loop devices")


class Bench:
    """A board on a bench: what the guide calls by its place is elsewhere here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.device = directory / "var"
        self.boot = directory / "boot"
        self.loops: list[str] = []
        for made in (self.device, self.boot / "grub", directory / "etc"):
            made.mkdir(parents=True)
        (self.device / "config.toml").write_text(IDENTITY)
        (directory / "pos-3.8.1.img").write_bytes(b"kernel" * 1000)
        (directory / "u-boot-initial-env").write_text("bootdelay=2\nbaudrate=115200\n")
        for name in ("slot-A", "slot-B", "emmc"):
            self._attach(name)
        self.places = {
            "/dev/disk/by-partlabel/slot-A": self.loops[0],
            "/dev/disk/by-partlabel/slot-B": self.loops[1],
            "/dev/mmcblk0": self.loops[2],
            "0x400000": "0x100000",
            "0x420000": "0x120000",
            "/var/lib/edge-agent": str(self.device),
            "/boot/": f"{self.boot}/",
            "/etc/": f"{directory}/etc/",
            "deploy/": f"{ROOT}/deploy/",
        }
        path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
        self.shell = Shell(directory, {"PATH": path, "LANG": "C.UTF-8", "PYTHONPATH": str(ROOT)})

    def _attach(self, name: str) -> None:
        backing = self.directory / name
        backing.write_bytes(bytes(SLOT_BYTES))
        self.loops.append(attach_loop(backing))

    def close(self) -> None:
        for loop in self.loops:
            run("losetup", "--detach", loop)

    def here(self, text: str) -> str:
        for there, here in self.places.items():
            text = text.replace(there, here)
        return text

    def section(self, title: str) -> str:
        return GUIDE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]

    def follow(self, title: str) -> None:
        for step in steps(self.section(title)):
            shown = None if step.shown is None else self.here(step.shown)
            self.shell.follow(Step(step.kind, self.here(step.commands), shown))

    def environment(self) -> BootEnvironment:
        return open_slots(self.device, load_device_config(self.device), Disk()).boot_control.read()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "bench")
    yield bench
    bench.close()


def test_a_board_with_grub(bench: Bench, tmp_path: Path) -> None:
    """The page's own grub.cfg boots what the page's commands left, and falls back as the page says."""
    bench.follow("GRUB")
    assert bench.environment() == BootEnvironment(Boot(SlotName.A, 1), trial=Trial(Boot(SlotName.B, 1), 1))
    assert Path(bench.loops[0]).read_bytes().startswith(b"kernel" * 1000)
    config = re.search(r"```\n(set timeout.*?)```", bench.section("GRUB"), re.DOTALL)
    assert config is not None
    # The emulator boots no kernel: it says what it would load.
    text = config[1].replace("linux ", "echo BOOT ").replace("initrd ", "echo ").replace("boot\nreboot\n", "exit\n")
    board = GrubBoard(tmp_path / "board", text)
    board.block.write_bytes((bench.boot / "grub" / "grubenv").read_bytes())
    board.make_disk()
    assert [board.boot() for _ in range(2)] == [Booted("B", "1"), Booted("A", "1")]
    trial = board.left().trial
    assert trial is not None
    assert (trial.tries_left, trial.fall_backs) == (0, 1)


def test_a_board_with_u_boot(bench: Bench) -> None:
    bench.follow("U-Boot")
    assert bench.environment() == BootEnvironment(Boot(SlotName.A, 1))
    assert Path(bench.loops[0]).read_bytes().startswith(b"kernel" * 1000)
    config = bench.directory / "etc" / "fw_env.config"
    assert run("fw_printenv", "-c", config, "-n", "baudrate").strip() == "115200"
    assert "source ${scriptaddr}" in run("fw_printenv", "-c", config, "-n", "bootcmd")
    assert run("mkimage", "-l", bench.boot / "wavemesh.scr").count("Script") == 1
