"""What a boot environment must do, whatever holds it: every transition, one at a time, whole or not at all (D3, D9)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from device.bootenv import Boot, BootEnvironmentError, ResetReason, SlotName
from tests.conformance.cuts import TEARS, TornDisk
from tests.conformance.subjects import EVERY
from tests.stopping_disk import PowerCutError
from wavemesh.runtime.durable import Disk, DiskFullError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from device.backend import SlotSystem
    from device.bootenv import BootEnvironment
    from tests.conformance.subjects import Subject

A1, B2, A3 = Boot(SlotName.A, 1), Boot(SlotName.B, 2), Boot(SlotName.A, 3)
MAX_STEPS = 20

#: Every transition that an update and its rollback go through, in an order in which each is allowed.
STORY: tuple[tuple[str, Callable[[SlotSystem], None], Callable[[BootEnvironment], BootEnvironment]], ...] = (
    ("arm", lambda s: s.boot_control.arm(B2), lambda e: e.arm(B2)),
    ("attempt", lambda s: s.bootloader.attempt(), lambda e: e.attempt()),
    ("keep trying", lambda s: s.boot_control.keep_trying(10), lambda e: e.keep_trying(10)),
    ("attempt again", lambda s: s.bootloader.attempt(), lambda e: e.attempt()),
    ("commit", lambda s: s.boot_control.commit(), lambda e: e.commit()),
    ("arm the way back", lambda s: s.boot_control.arm(A1), lambda e: e.arm(A1)),
    ("attempt it", lambda s: s.bootloader.attempt(), lambda e: e.attempt()),
    ("revert", lambda s: s.boot_control.revert(), lambda e: e.revert()),
    ("arm a config", lambda s: s.boot_control.arm(A3), lambda e: e.arm(A3)),
    ("commit it", lambda s: s.boot_control.commit(), lambda e: e.commit()),
    ("arm for good", lambda s: s.boot_control.arm(B2), lambda e: e.arm(B2)),
    ("commit for good", lambda s: s.boot_control.commit(), lambda e: e.commit()),
    ("invalidate", lambda s: s.boot_control.invalidate(SlotName.A), lambda e: e.invalidate(SlotName.A)),
    ("arm to forget", lambda s: s.boot_control.arm(A1), lambda e: e.arm(A1)),
    ("disarm", lambda s: s.boot_control.disarm(), lambda e: e.disarm()),
)


@pytest.mark.parametrize("subject", EVERY, indirect=True)
def test_every_transition_means_what_it_says_and_is_there_after_a_restart(subject: Subject) -> None:
    subject.trust(SlotName.B)
    expected = subject.open().boot_control.read()
    for name, act, transition in STORY:
        act(subject.open())
        expected = replace(transition(expected), sequence=expected.sequence + 1)
        assert subject.open().boot_control.read() == expected, name
        assert subject.open().bootloader.read() == expected, name


@pytest.mark.parametrize("subject", EVERY, indirect=True)
def test_a_transition_that_changes_nothing_writes_nothing(subject: Subject) -> None:
    before = subject.open().boot_control.read()
    subject.open().boot_control.disarm()
    subject.open().boot_control.invalidate(SlotName.B)
    assert subject.open().boot_control.read() == before


@pytest.mark.parametrize("subject", EVERY, indirect=True)
def test_the_active_slot_is_not_invalidated_and_nothing_comes_from_nowhere(subject: Subject) -> None:
    control = subject.open().boot_control
    with pytest.raises(BootEnvironmentError, match="active"):
        control.invalidate(SlotName.A)
    for act in (control.revert, control.commit):
        with pytest.raises(BootEnvironmentError, match="trial"):
            act()


@pytest.mark.parametrize("subject", EVERY, indirect=True)
def test_a_proven_end_is_told_once_and_never_turns_into_a_power_loss(subject: Subject) -> None:
    """Semantics: power-loss is proven by the reset reason, else it is the watchdog."""
    subject.trust(SlotName.B)
    subject.open().boot_control.arm(B2)
    subject.open().bootloader.attempt()
    subject.open().bootloader.fall_back(ResetReason.POWER_LOSS)
    trial = subject.open().boot_control.read().trial
    assert trial is not None
    assert trial.end(ResetReason.POWER_LOSS) is ResetReason.POWER_LOSS
    subject.open().boot_control.keep_trying(1)
    subject.open().bootloader.attempt()
    for reason in (ResetReason.WATCHDOG, ResetReason.POWER_LOSS, ResetReason.POWER_LOSS):
        subject.open().bootloader.fall_back(reason)
    trial = subject.open().boot_control.read().trial
    assert trial is not None
    assert trial.end(ResetReason.POWER_LOSS) is ResetReason.WATCHDOG


@pytest.mark.parametrize("tear", TEARS)
def test_a_write_that_is_cut_anywhere_leaves_the_old_or_the_new_environment(subject: Subject, tear: str) -> None:
    """D9: every durable step of every transition, with part of the unflushed sectors on the medium."""
    for name, act, transition in STORY:
        before = subject.open().boot_control.read()
        after = replace(transition(before), sequence=before.sequence + 1)
        steps = 0
        while not _survives(subject, act, steps, tear):
            found = subject.open().boot_control.read()
            assert found in (before, after), f"{name}, cut before step {steps}"
            if found == after:
                break
            steps += 1
            assert steps < MAX_STEPS
        assert steps > 0, f"{name} goes around the disk"
        assert subject.open().boot_control.read() == after


def _survives(subject: Subject, act: Callable[[SlotSystem], None], stop: int, tear: str) -> bool:
    disk = TornDisk(stop, TEARS[tear])
    try:
        act(subject.open(disk))
    except PowerCutError:
        return False
    disk.lose()  # what returned is durable
    return True


@pytest.mark.parametrize("subject", EVERY, indirect=True)
def test_an_unreadable_environment_is_named_and_never_guessed(subject: Subject) -> None:
    """Q2."""
    subject.corrupt()
    with pytest.raises(BootEnvironmentError, match=str(subject.slots_directory)):
        subject.open().boot_control.read()
    with pytest.raises(BootEnvironmentError):
        subject.open().boot_control.arm(B2)


def test_what_others_keep_there_stays(shared_subject: Subject) -> None:
    subject = shared_subject
    values = ["7", "a longer one with = in it", "8"]
    subject.set_foreign(values[0])
    for number, (name, act, _) in enumerate(STORY):
        act(subject.open())
        assert subject.foreign() == values[number % 3], name
        subject.set_foreign(values[(number + 1) % 3])
    assert subject.open().boot_control.read().active == B2


class FullDisk(Disk):
    """No space is left."""

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, path: Path) -> None:
        raise DiskFullError(str(path), path=str(path))


@pytest.mark.parametrize("subject", EVERY, indirect=True)
def test_a_disk_that_refuses_is_said_and_changes_nothing(subject: Subject) -> None:
    subject.trust(SlotName.B)
    before = subject.open().boot_control.read()
    with pytest.raises(DiskFullError):
        subject.open(FullDisk()).boot_control.arm(B2)
    assert subject.open().boot_control.read() == before
