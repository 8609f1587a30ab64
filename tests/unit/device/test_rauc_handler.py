"""What RAUC's marks may do to the boot environment: only what the agent asked for, or what takes trust away (D3)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, BootEnvironment, BootEnvironmentError, SlotName, Trial
from device.slots.rauc_handler import (
    MarkRequest,
    is_good,
    primary,
    read_request,
    request_path,
    set_primary,
    set_state,
)
from device.slots.rauc_service import gate_of
from device.slots.simulated import SimulatedBootControl
from device.values import to_plain
from wavemesh.policy.gates import Gate
from wavemesh.runtime.durable import Disk

if TYPE_CHECKING:
    from pathlib import Path

A, B = SlotName.A, SlotName.B
A1, A2, B2, B3 = Boot(A, 1), Boot(A, 2), Boot(B, 2), Boot(B, 3)
ARMED = BootEnvironment(A1, trial=Trial(B2, 1))
TRYING = BootEnvironment(A1, trial=Trial(B2, 0))
CONFIG_TRIAL = BootEnvironment(A1, trial=Trial(A2, 0))
COMMITTED = BootEnvironment(B2, previous=A1)


@pytest.fixture
def control(tmp_path: Path) -> SimulatedBootControl:
    return SimulatedBootControl(tmp_path, Disk())


def after(control: SimulatedBootControl) -> BootEnvironment:
    return replace(control.read(), sequence=0)


@pytest.mark.parametrize(
    ("environment", "boots_next", "good"),
    [
        (BootEnvironment(A1), A, {A}),
        (ARMED, B, {A, B}),
        (TRYING, A, {A}),
        (COMMITTED, B, {A, B}),
        (BootEnvironment(B2), B, {B}),
    ],
)
def test_what_rauc_is_told(environment: BootEnvironment, boots_next: SlotName, good: set[SlotName]) -> None:
    assert primary(environment) is boots_next
    assert {slot for slot in SlotName if is_good(environment, slot)} == good


def test_active_arms_the_boot_that_was_asked_for(control: SimulatedBootControl) -> None:
    control.write(BootEnvironment(A1, sequence=7))
    set_primary(control, B, MarkRequest("active", B2, 7))
    assert after(control) == ARMED
    control.write(BootEnvironment(A1, sequence=7))
    set_primary(control, A, MarkRequest("active", A2, 7))
    assert control.read().trial == Trial(A2, 1)


@pytest.mark.parametrize(
    "request_",
    [
        None,
        MarkRequest("good", B2, 7),
        MarkRequest("active", A2, 7),
        MarkRequest("active", B2, 6),
    ],
)
def test_active_without_that_request_arms_nothing(control: SimulatedBootControl, request_: MarkRequest | None) -> None:
    control.write(BootEnvironment(A1, sequence=7))
    with pytest.raises(BootEnvironmentError, match="only the agent arms"):
        set_primary(control, B, request_)
    assert control.read() == BootEnvironment(A1, sequence=7)
    set_primary(control, A, request_)  # it is already
    assert control.read().trial is None or request_ == MarkRequest("active", A2, 7)


def test_good_commits_the_trial_that_was_asked_for(control: SimulatedBootControl) -> None:
    for environment, boot in ((TRYING, B2), (CONFIG_TRIAL, A2)):
        control.write(replace(environment, sequence=7))
        set_state(control, boot.slot, "good", MarkRequest("good", boot, 7))
        assert after(control) == BootEnvironment(boot, previous=A1)


@pytest.mark.parametrize(
    "request_", [None, MarkRequest("active", B2, 7), MarkRequest("good", B3, 7), MarkRequest("good", B2, 8)]
)
@pytest.mark.parametrize(("environment", "slot"), [(TRYING, B), (CONFIG_TRIAL, A), (TRYING, A)])
def test_good_without_that_request_commits_nothing(
    control: SimulatedBootControl, environment: BootEnvironment, slot: SlotName, request_: MarkRequest | None
) -> None:
    """A unit that marks every boot good must not end a trial."""
    control.write(replace(environment, sequence=7))
    with pytest.raises(BootEnvironmentError, match="only the agent ends a trial"):
        set_state(control, slot, "good", request_)
    assert control.read() == replace(environment, sequence=7)


def test_good_is_said_again_of_what_is_good(control: SimulatedBootControl) -> None:
    control.write(COMMITTED)
    set_state(control, B, "good", None)
    assert control.read() == COMMITTED


def test_bad_ends_a_trial_or_the_last_known_good_but_not_the_active_slot(control: SimulatedBootControl) -> None:
    control.write(COMMITTED)
    set_state(control, A, "bad", None)
    assert after(control) == BootEnvironment(B2)
    control.write(TRYING)
    set_state(control, B, "bad", None)
    assert after(control) == BootEnvironment(A1)
    with pytest.raises(BootEnvironmentError, match="active one"):
        set_state(control, A, "bad", None)


def handler(directory: Path, *words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "device.slots.rauc_handler", "--dir", str(directory), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.returncode, done.stdout, done.stderr


def test_the_program_that_rauc_runs(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[device]\ndevice_class = "pos"\nhardware_revision = "r1"\n[hub]\naddress = "h:1"\n[board]\nbackend = "rauc"\n'
    )
    (tmp_path / "slots").mkdir()
    (tmp_path / "rauc").mkdir()
    control = SimulatedBootControl(tmp_path / "slots", Disk())
    control.write(BootEnvironment(A1))
    request = request_path(tmp_path / "rauc")
    assert handler(tmp_path, "get-primary") == (0, "A\n", "")
    assert handler(tmp_path, "get-state", "B") == (0, "bad\n", "")
    request.write_text(json.dumps(to_plain(MarkRequest("active", B2, 0))))
    assert handler(tmp_path, "set-primary", "B") == (0, "", "")
    assert after(control) == ARMED
    code, _, said = handler(tmp_path, "set-state", "C", "good")
    assert (code, said.split(":")[1].strip()) == (1, "BOOT_ENVIRONMENT")
    assert "not a question" in handler(tmp_path, "set-state", "B", "fine")[2]
    request.write_text("{")
    assert read_request(request) is None


def test_words_that_are_not_known_are_a_fault_of_the_device() -> None:
    assert gate_of("Installation error: Compatible mismatch: Expected 'a' but bundle manifest has 'b'") is Gate.CLASS
    assert gate_of("Slot (4096 bytes) is too small for image (8192 bytes).") is Gate.DUAL_PARTITION
    assert gate_of("Failed updating slot: No space left on device") is Gate.DISK
    assert gate_of("something new") is Gate.DISK


@pytest.mark.parametrize("module", ["device.app", "device.supervisor", "device.factory", "device.slots.rauc_handler"])
def test_dbus_is_loaded_with_its_back_end_only(module: str) -> None:
    """D10: a device without RAUC does not carry it, and the handler, which RAUC runs a dozen times, stays light."""
    program = f"import {module}, sys; sys.exit('jeepney' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=30).returncode == 0
