"""The bootloaders' own scripts, run by real bootloaders: GRUB's emulator and U-Boot in QEMU (D3, D9, D10).

Each boot must choose what the model of device/bootenv.py chooses, and leave the environment that the model leaves.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from device.bootenv import Boot, BootEnvironment, SlotName, Trial
from device.slots.grub import GrubBootControl
from device.slots.uboot import UbootBootControl
from tests.conformance.subjects import run
from wavemesh.runtime.durable import Disk

DEPLOY = Path(__file__).parents[2] / "deploy"
A1, B2 = Boot(SlotName.A, 1), Boot(SlotName.B, 22)
PATIENCE_S = 30.0
BOOT = re.compile(r"BOOT.* wavemesh\.slot=(\w*)\s+wavemesh\.config=(\d*)")

ENVIRONMENTS = {
    "settled": BootEnvironment(A1, B2),
    "settled on B": BootEnvironment(B2, A1),
    **{f"{tries} tries": BootEnvironment(A1, trial=Trial(B2, tries)) for tries in (*range(11), 1)},
    "a config on trial": BootEnvironment(A1, B2, Trial(Boot(SlotName.A, 2), 1)),
    "fell back once": BootEnvironment(A1, trial=Trial(B2, 0, fall_backs=1)),
    "fell back often": BootEnvironment(A1, trial=Trial(B2, 0, fall_backs=2)),
}


@dataclass(frozen=True, slots=True)
class Booted:
    """What a bootloader chose: slot and config generation, as the kernel's command line has them."""

    slot: str
    config: str


def model(environment: BootEnvironment) -> tuple[Booted, BootEnvironment]:
    """What a bootloader must do, by the transitions."""
    trial = environment.trial
    boot, after = environment.active, environment
    if trial is not None and trial.tries_left > 0:
        boot, after = trial.boot, environment.attempt()
    elif trial is not None:
        after = environment.count_fall_back()
    return Booted(boot.slot.value, str(boot.config_generation)), after


def booted(output: str) -> Booted:
    found = BOOT.search(output)
    assert found is not None, output
    return Booted(found[1], found[2])


class GrubBoard:
    """GRUB's emulator on a disk with an ext2 file system, which is read as GRUB left it."""

    CONFIG = 'set wavemesh_env=$prefix/grubenv\nsource $prefix/wavemesh.cfg\necho "BOOT $wavemesh_cmdline"\nexit\n'

    def __init__(self, directory: Path, config: str = CONFIG) -> None:
        self.directory = directory
        self.disk, self.map, root = directory / "disk.img", directory / "device.map", directory / "root" / "boot"
        root.mkdir(parents=True)
        self.block = root / "grubenv"
        (root / "wavemesh.cfg").write_bytes((DEPLOY / "grub" / "wavemesh.cfg").read_bytes())
        (root / "grub.cfg").write_text(config)
        self.map.write_text(f"(hd0) {self.disk}\n")

    def make_disk(self) -> None:
        run("mke2fs", "-q", "-t", "ext2", "-d", self.directory / "root", self.disk, "2M")

    def boot(self) -> Booted:
        ours, theirs = pty.openpty()
        command = ["grub-emu", "--device-map", str(self.map), "--root", "hd0", "--directory", "/boot"]
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=os.environ | {"TERM": "dumb", "COLUMNS": "200"}
        )
        os.close(theirs)
        output = b""
        try:
            while piece := _read(ours):
                output += piece
        finally:
            os.close(ours)
        assert process.wait(PATIENCE_S) == 0, output
        return booted(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", output.decode()))

    def left(self) -> BootEnvironment:
        """What the boot left on the disk."""
        run("debugfs", "-R", f"dump /boot/grubenv {self.block}", self.disk)
        return GrubBootControl(self.block, Disk()).read()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end of a terminal is gone
        return b""


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_grub_boots_what_the_model_boots(tmp_path: Path, name: str) -> None:
    board = GrubBoard(tmp_path)
    GrubBootControl(board.block, Disk()).write(ENVIRONMENTS[name])
    board.make_disk()
    chosen, after = model(ENVIRONMENTS[name])
    assert board.boot() == chosen
    assert board.left() == after


def test_grub_leaves_what_others_keep_and_goes_from_trial_to_fall_back(tmp_path: Path) -> None:
    """D9: however often the power fails, a trial boots as often as it has tries, then the active slot does."""
    board = GrubBoard(tmp_path)
    run("grub-editenv", board.block, "create")
    run("grub-editenv", board.block, "set", "saved_entry=theirs")
    GrubBootControl(board.block, Disk()).write(BootEnvironment(A1).arm(B2).keep_trying(2))
    board.make_disk()
    assert [board.boot().slot for _ in range(5)] == ["B", "B", "A", "A", "A"]
    assert board.left().trial == Trial(B2, 0, fall_backs=2)
    assert "saved_entry=theirs" in run("grub-editenv", board.block, "list")


def test_grub_does_not_try_what_it_cannot_count(tmp_path: Path) -> None:
    """D9: GRUB reads a disk in a file and cannot write to it."""
    config = GrubBoard.CONFIG.replace("$prefix/grubenv", "(inner)/grubenv")
    board = GrubBoard(tmp_path, "loopback inner (hd0)/boot/inner\n" + config)
    GrubBootControl(board.block, Disk()).write(ENVIRONMENTS["1 tries"])
    run("mke2fs", "-q", "-t", "ext2", "-d", board.block.parent, tmp_path / "inner", "256k")
    (tmp_path / "inner").rename(board.block.with_name("inner"))
    board.make_disk()
    assert board.boot() == Booted("A", "1")


def test_grub_boots_something_without_an_environment(tmp_path: Path) -> None:
    board = GrubBoard(tmp_path)
    board.block.write_bytes(b"\0" * 1024)
    board.make_disk()
    assert board.boot() == Booted("A", "")


class UbootBoard:
    """U-Boot for QEMU's arm64 board.

    It reads its environment from emulated flash. It cannot write it there (gitlab.com/qemu-project/qemu/-/issues/2343),
    so ``saveenv`` is told to write to a disk, in the script that is otherwise as shipped.
    """

    FLASH_BYTES = 64 * 1024 * 1024
    COPY_BYTES = 0x40000
    SAVE = "env export -c -s 0x40000 0x44000000 && virtio write 0x44000000 0 0x200"

    def __init__(self, directory: Path, save: str = SAVE) -> None:
        self.directory = directory
        script = directory / "wavemesh.cmd"
        shipped = (DEPLOY / "uboot" / "wavemesh.cmd").read_text()
        script.write_text(re.sub(r"^( *)saveenv|(?<=if )saveenv", rf"\1{save}", shipped, flags=re.MULTILINE))
        run("mkimage", "-T", "script", "-C", "none", "-d", script, directory / "wavemesh.scr")
        firmware = directory / "firmware"
        firmware.write_bytes(Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin").read_bytes())
        os.truncate(firmware, self.FLASH_BYTES)
        self.flash, self.disk, self.config = (directory / name for name in ("flash", "disk", "fw_env.config"))
        (directory / "uboot-env").write_bytes(bytes(2 * self.COPY_BYTES))
        lines = (f"{directory}/uboot-env {offset:#x} {self.COPY_BYTES:#x}\n" for offset in (0, self.COPY_BYTES))
        self.config.write_text("".join(lines))
        self.control = UbootBootControl(self.config, Disk())
        self.single = directory / "single.config"

    def power_on(self) -> Booted:
        """Boot with the environment that fw_printenv finds; what U-Boot saved is given to fw_setenv."""
        chosen = self.boot(run("fw_printenv", "-c", self.config))
        self.single.write_text(f"{self.disk} 0x0 {self.COPY_BYTES:#x}\n")
        (self.directory / "left").write_text(run("fw_printenv", "-c", self.single))
        run("fw_setenv", "-c", self.config, "-s", self.directory / "left")
        return chosen

    def boot(self, variables: str) -> Booted:
        """Boot with that environment."""
        bootcmd = "bootcmd=virtio scan; source 0x42000000; echo BOOT ${wavemesh_cmdline}; poweroff\nbootdelay=0\n"
        (self.directory / "text").write_text(variables + bootcmd)
        run("mkenvimage", "-s", str(self.COPY_BYTES), "-o", self.flash, self.directory / "text")
        self.disk.write_bytes(self.flash.read_bytes())
        os.truncate(self.flash, self.FLASH_BYTES)
        output = run(
            *(
                "qemu-system-aarch64",
                "-machine",
                "virt",
                "-cpu",
                "cortex-a57",
                "-m",
                "128",
                "-nographic",
                "-nic",
                "none",
            ),
            *("-drive", f"if=pflash,format=raw,readonly=on,file={self.directory}/firmware"),
            *("-drive", f"if=pflash,format=raw,file={self.flash}"),
            *("-drive", f"if=none,format=raw,id=disk,file={self.disk}", "-device", "virtio-blk-device,drive=disk"),
            *("-device", f"loader,file={self.directory}/wavemesh.scr,addr=0x42000000,force-raw=on"),
        )
        return booted(output)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_uboot_boots_what_the_model_boots(tmp_path: Path, name: str) -> None:
    board = UbootBoard(tmp_path)
    board.control.write(ENVIRONMENTS[name])
    chosen, after = model(ENVIRONMENTS[name])
    assert board.power_on() == chosen
    assert board.control.read() == after


def test_uboot_goes_from_trial_to_fall_back(tmp_path: Path) -> None:
    """D9."""
    board = UbootBoard(tmp_path)
    board.control.write(BootEnvironment(A1).arm(B2).keep_trying(2))
    assert [board.power_on().slot for _ in range(5)] == ["B", "B", "A", "A", "A"]
    assert board.control.read().trial == Trial(B2, 0, fall_backs=2)


def test_uboot_does_not_try_what_it_cannot_count(tmp_path: Path) -> None:
    board = UbootBoard(tmp_path, "false")
    board.control.write(ENVIRONMENTS["1 tries"])
    assert board.power_on() == Booted("A", "1")
    assert board.control.read() == ENVIRONMENTS["1 tries"]


def test_uboot_boots_something_without_an_environment(tmp_path: Path) -> None:
    assert UbootBoard(tmp_path).boot("other=1\n") == Booted("A", "")
