"""The tools of the bootloaders and we understand each other: grub-editenv, fw_printenv, fw_setenv (D10)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, BootEnvironment, BootEnvironmentError, SlotName, Trial
from device.slots.grub import GrubBootControl
from device.slots.uboot import UbootBootControl
from device.slots.variables import to_variables
from tests.conformance.cuts import TEARS, TornDisk
from tests.conformance.subjects import run
from tests.stopping_disk import PowerCutError
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path

A1, B2 = Boot(SlotName.A, 1), Boot(SlotName.B, 2)
ON_TRIAL = BootEnvironment(A1, Boot(SlotName.B, 4), Trial(B2, 1), 7)


def pairs(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


class TestGrub:
    @pytest.fixture
    def block(self, tmp_path: Path) -> Path:
        return tmp_path / "grubenv"

    @pytest.fixture
    def control(self, block: Path) -> GrubBootControl:
        return GrubBootControl(block, Disk())

    def test_grub_editenv_lists_what_we_wrote(self, block: Path, control: GrubBootControl) -> None:
        control.write(ON_TRIAL)
        assert pairs(run("grub-editenv", block, "list")) == to_variables(ON_TRIAL)

    def test_we_read_what_grub_editenv_wrote_as_a_bootloader_would(self, block: Path, control: GrubBootControl) -> None:
        control.write(ON_TRIAL)
        run("grub-editenv", block, "set", "wavemesh_tries=0", "wavemesh_fall_backs=1")
        assert control.read().trial == Trial(B2, 0, fall_backs=1)

    def test_a_block_that_others_made_is_taken_over_with_their_variables(
        self, block: Path, control: GrubBootControl
    ) -> None:
        theirs = {"saved_entry": "old", "odd": "back\\slash = and #", "next_entry": ""}
        run("grub-editenv", block, "create")
        run("grub-editenv", block, "set", *(f"{name}={value}" for name, value in theirs.items()))
        with pytest.raises(BootEnvironmentError, match="no variable wavemesh_active"):
            control.read()
        control.lay(ON_TRIAL)
        assert pairs(run("grub-editenv", block, "list")) == to_variables(ON_TRIAL) | theirs
        control.commit()
        assert control.read().active == B2
        listed = pairs(run("grub-editenv", block, "list"))
        assert {name: listed[name] for name in theirs} == theirs

    def test_a_variable_of_two_lines_stays_one(self, block: Path, control: GrubBootControl) -> None:
        control.write(ON_TRIAL)
        run("grub-editenv", block, "set", "two=lines\nwavemesh_active=B")
        control.commit()
        assert control.read().active == B2
        assert "two=lines\nwavemesh_active=B" in run("grub-editenv", block, "list")

    @pytest.mark.parametrize("tear", TEARS)
    @pytest.mark.parametrize("stop", range(4))
    def test_a_block_that_another_program_shifted_is_replaced_as_a_whole(
        self, block: Path, control: GrubBootControl, stop: int, tear: str
    ) -> None:
        """D9: both sectors change, and a cut leaves all variables of one moment."""
        control.write(ON_TRIAL)
        run("grub-editenv", block, "set", "saved_entry=" + "x" * 300)
        run("grub-editenv", block, "unset", "wavemesh_sequence")
        run("grub-editenv", block, "set", "wavemesh_sequence=7")
        with pytest.raises(PowerCutError):
            GrubBootControl(block, TornDisk(stop, TEARS[tear])).commit()
        assert control.read() in {ON_TRIAL, replace(ON_TRIAL.commit(), sequence=8)}
        assert pairs(run("grub-editenv", block, "list"))["saved_entry"] == "x" * 300

    def test_more_than_fits_is_refused_by_name(self, block: Path, control: GrubBootControl) -> None:
        run("grub-editenv", block, "create")
        run("grub-editenv", block, "set", "kernelopts=" + "x" * 600)
        with pytest.raises(
            BootEnvironmentError, match=r"grubenv: the variables of others take 612 bytes, 512 are free"
        ):
            control.lay(ON_TRIAL)

    @pytest.mark.parametrize(
        "change",
        [
            "wavemesh_active=C",
            "wavemesh_active=-",
            "wavemesh_active=",
            "wavemesh_tries=11",
            "wavemesh_tries=01",
            "wavemesh_tries=x",
            "wavemesh_fall_backs=3",
            "wavemesh_trial=-",
            "wavemesh_trial_config=-1",
            "wavemesh_previous_config=-",
            "wavemesh_sequence=1e3",
        ],
    )
    def test_what_we_would_not_have_written_is_no_environment(
        self, block: Path, control: GrubBootControl, change: str
    ) -> None:
        control.write(ON_TRIAL)
        run("grub-editenv", block, "set", change)
        with pytest.raises(BootEnvironmentError, match=r"grubenv: not a boot environment .*write it anew"):
            control.read()


class TestUboot:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        path = tmp_path / "fw_env.config"
        for name in ("first", "second"):
            (tmp_path / name).write_bytes(bytes(0x4000))
        path.write_text(f"# two files\n{tmp_path}/first 0x1000 0x2000 0x2000\n{tmp_path}/second 0x0 0x2000\n")
        return path

    @pytest.fixture
    def control(self, config: Path) -> UbootBootControl:
        control = UbootBootControl(config, Disk())
        control.lay(ON_TRIAL)
        return control

    def test_fw_printenv_prints_what_we_wrote(self, config: Path, control: UbootBootControl) -> None:
        for environment in (ON_TRIAL, ON_TRIAL.commit(), ON_TRIAL.disarm()):
            control.write(environment)
            assert pairs(run("fw_printenv", "-c", config)) == to_variables(environment)

    def test_we_read_what_fw_setenv_wrote_as_a_bootloader_would(self, config: Path, control: UbootBootControl) -> None:
        run("fw_setenv", "-c", config, "bootcmd", "run distro_bootcmd; reset")
        run("fw_setenv", "-c", config, "wavemesh_tries", "0")
        run("fw_setenv", "-c", config, "wavemesh_fall_backs", "2")
        assert control.read().trial == Trial(B2, 0, fall_backs=2)
        control.commit()
        assert run("fw_printenv", "-c", config, "-n", "bootcmd").strip() == "run distro_bootcmd; reset"

    def test_we_agree_on_the_copy_in_use_through_every_count(self, config: Path, control: UbootBootControl) -> None:
        for number in range(260):
            control.write(BootEnvironment(Boot(SlotName.A, number)))
            if number % 20 < 2 or number > 250:
                assert run("fw_printenv", "-c", config, "-n", "wavemesh_active_config").strip() == str(number)
            assert control.read().active.config_generation == number

    @pytest.mark.parametrize("name", ["first", "second"])
    def test_a_spoiled_copy_is_survived_and_written_next(
        self, config: Path, control: UbootBootControl, name: str
    ) -> None:
        control.write(ON_TRIAL)
        path = config.with_name(name)
        content = bytearray(path.read_bytes())
        content[0x1800 if name == "first" else 0x800] ^= 1
        path.write_bytes(content)
        assert control.read() == ON_TRIAL
        assert pairs(run("fw_printenv", "-c", config)) == to_variables(ON_TRIAL)
        control.commit()
        assert path.read_bytes() != content
        assert pairs(run("fw_printenv", "-c", config))["wavemesh_active"] == "B"

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("{0}/first 0 0x2000\n", "two lines"),
            ("", "two lines"),
            ("{0}/first 0 0x2000\n{0}/second zero 0x2000\n", "two lines"),
            ("{0}/first 0 0x2000\n{0}/second 0 0x1000\n", "one size"),
            ("{0}/first 0 0x10\n{0}/second 0 0x10\n", "one size"),
            ("{0}/first 0 0x2000\n{0}/first 0x1000 0x2000\n", "overlap"),
            ("/dev/null 0 0x2000\n/dev/null 0x2000 0x2000\n", "raw MTD"),
        ],
    )
    def test_a_configuration_that_cannot_survive_a_cut_is_refused(
        self, config: Path, control: UbootBootControl, text: str, words: str
    ) -> None:
        config.write_text(text.format(config.parent))
        with pytest.raises(BootEnvironmentError, match=rf"fw_env.config: .*{words}"):
            control.read()

    def test_an_environment_that_is_full_is_refused_by_name(self, config: Path, control: UbootBootControl) -> None:
        ours = sum(len(name) + len(value) + 2 for name, value in to_variables(ON_TRIAL).items())
        room = 0x2000 - 5 - 1
        run("fw_setenv", "-c", config, "big", "x" * (room - ours - len("big=") - 1))
        control.write(ON_TRIAL)
        with pytest.raises(BootEnvironmentError, match="takes 8188 bytes, a copy has 8187"):
            control.write(replace(ON_TRIAL, sequence=10))
        assert control.read() == ON_TRIAL
