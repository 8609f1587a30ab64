"""The boot environment: transitions, and a file that is believed whole or not at all (D9)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device.bootenv import (
    Boot,
    BootEnvironment,
    BootEnvironmentError,
    ResetReason,
    SlotName,
    Trial,
    decode,
    encode,
)

A1, B2 = Boot(SlotName.A, 1), Boot(SlotName.B, 2)
boots = st.builds(Boot, st.sampled_from(SlotName), st.integers(0, 1000))
trials = st.builds(Trial, boots, st.integers(0, 10), st.none() | st.sampled_from(ResetReason))
environments = st.builds(BootEnvironment, boots, st.none() | boots, st.none() | trials, st.integers(0, 10**9))


@given(environments)
def test_what_is_written_is_read(environment: BootEnvironment) -> None:
    assert decode(encode(environment), "x") == environment


@given(environments, st.data())
def test_any_changed_byte_is_noticed(environment: BootEnvironment, data: st.DataObject) -> None:
    content = bytearray(encode(environment))
    index = data.draw(st.integers(0, len(content) - 1))
    content[index] ^= data.draw(st.integers(1, 255))
    try:
        assert decode(bytes(content), "x") == environment  # white space between values means nothing
    except BootEnvironmentError:
        return


@given(environments, st.integers(0, 400))
def test_a_torn_file_is_noticed(environment: BootEnvironment, length: int) -> None:
    content = encode(environment)
    if length < len(content) - 1:
        with pytest.raises(BootEnvironmentError):
            decode(content[:length], "x")


def test_a_trial_boots_as_often_as_it_has_tries() -> None:
    environment = BootEnvironment(A1).arm(B2)
    assert environment.trial == Trial(B2, 1)
    tried = environment.attempt()
    assert tried.trial == Trial(B2, 0)
    assert tried.fall_back(ResetReason.POWER_LOSS).fall_back(ResetReason.WATCHDOG).trial == Trial(
        B2, 0, ResetReason.POWER_LOSS
    )
    assert tried.active == A1


def test_commit_and_revert() -> None:
    committed = BootEnvironment(A1).arm(B2).attempt().commit()
    assert committed == BootEnvironment(B2, A1)
    assert committed.arm(A1).attempt().revert() == BootEnvironment(A1)


def test_writing_a_slot_takes_its_good_mark_first() -> None:
    """D1: after the first byte of a write nothing may boot that slot, the active slot is never given away."""
    committed = BootEnvironment(B2, A1, Trial(Boot(SlotName.A, 3), 1))
    assert committed.invalidate(SlotName.A) == BootEnvironment(B2)
    with pytest.raises(BootEnvironmentError):
        committed.invalidate(SlotName.B)


def test_impossible_transitions_are_refused() -> None:
    for transition in (BootEnvironment.commit, BootEnvironment.attempt, BootEnvironment.revert):
        with pytest.raises(BootEnvironmentError):
            transition(BootEnvironment(A1, B2))
