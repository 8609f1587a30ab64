"""What the bootloader decides."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from device.backend import open_slots
from device.board import read_boot_record
from device.bootenv import Boot, BootEnvironment, ResetReason, SlotName
from device.config import unconfigured
from device.firmware import Firmware
from device.slots.simulated import SimulatedBootControl
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path

A1, B2 = Boot(SlotName.A, 1), Boot(SlotName.B, 2)


def test_a_trial_boots_once_however_often_the_power_fails(tmp_path: Path) -> None:
    """D9: the try is taken durably before the trial boots."""
    (tmp_path / "slots").mkdir()
    (tmp_path / "run").mkdir()
    control = SimulatedBootControl(tmp_path / "slots", Disk())
    control.write(BootEnvironment(A1).arm(B2))
    firmware = Firmware(tmp_path, open_slots(tmp_path, unconfigured(tmp_path), Disk()), 1024)
    assert firmware.first_reason() is ResetReason.POWER_ON
    assert firmware.boot(ResetReason.REBOOT).boot == B2
    assert firmware.is_trial(B2)
    assert firmware.first_reason() is ResetReason.POWER_LOSS
    for reason in (ResetReason.WATCHDOG, ResetReason.POWER_LOSS):
        assert firmware.boot(reason).boot == A1
        assert read_boot_record(tmp_path).reset_reason is reason
    trial = control.read().trial
    assert trial is not None
    assert trial.ended_by is ResetReason.WATCHDOG
    lines = (tmp_path / "run" / "boots.jsonl").read_text().splitlines()
    assert [json.loads(line)["slot"] for line in lines] == ["B", "A", "A"]
    firmware.shut_down()
    assert firmware.first_reason() is ResetReason.POWER_ON
