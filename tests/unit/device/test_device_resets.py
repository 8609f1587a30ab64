"""When a board resets and what it does then, and where a power cut asked for happens."""

from __future__ import annotations

import pytest

from device.bootenv import ResetReason
from device.resets import (
    MAX_TRIGGERS,
    RESTART_DELAY_S,
    TRIAL_CRASHES,
    Board,
    BootUp,
    End,
    KillAgent,
    LetPass,
    LoseUnflushed,
    StartAgent,
    matches,
)

WATCHDOG_S, BOOT_TIMER_S = 20.0, 30.0


@pytest.fixture
def board() -> Board:
    """One that was switched on at 100."""
    board = Board(WATCHDOG_S, BOOT_TIMER_S)
    assert board.power_up(ResetReason.POWER_ON, 100.0) == (BootUp(ResetReason.POWER_ON),)
    return board


@pytest.mark.parametrize(
    ("trigger", "step", "happens"),
    [
        ("staging:50%", "staging:49%", False),
        ("staging:50%", "staging:50%", True),
        ("staging:50%", "staging:62%", True),
        ("staging:50%", "state:STAGING", False),
        ("swap", "trial", True),
        ("swap", "state:TRIAL", False),
        ("state:ARMED", "state:ARMED", True),
        ("staging:half", "staging:50%", False),
    ],
)
def test_where_a_cut_happens(trigger: str, step: str, happens: bool) -> None:  # noqa: FBT001  # a table's column
    assert matches(trigger, step) is happens


def test_an_agent_that_never_pets_is_reset_by_the_boot_timer(board: Board) -> None:
    assert board.due(100.0 + BOOT_TIMER_S - 0.1) == ()
    assert board.due_s == 100.0 + BOOT_TIMER_S
    assert board.due(100.0 + BOOT_TIMER_S) == (KillAgent(), BootUp(ResetReason.WATCHDOG))
    assert board.due_s == 100.0 + 2 * BOOT_TIMER_S


def test_an_agent_that_stops_petting_is_reset_by_the_watchdog(board: Board) -> None:
    board.petted(115.0)
    assert board.due(115.0 + WATCHDOG_S - 0.1) == ()
    assert board.due(115.0 + WATCHDOG_S) == (KillAgent(), BootUp(ResetReason.WATCHDOG))


def test_a_reboot_asked_for_is_a_reset(board: Board) -> None:
    assert board.agent_ended(End.REBOOT, 110.0) == (BootUp(ResetReason.REBOOT),)


def test_a_crashed_agent_starts_again_in_the_same_boot_however_often(board: Board) -> None:
    now_s = 110.0
    for _ in range(TRIAL_CRASHES + 2):
        assert board.agent_ended(End.CRASH, now_s) == ()
        assert board.due(now_s) == ()
        assert board.due_s == now_s + RESTART_DELAY_S
        now_s += RESTART_DELAY_S
        assert board.due(now_s) == (StartAgent(),)
        assert board.due_s == now_s + BOOT_TIMER_S


def test_what_an_agent_still_had_to_do_ends_with_it(board: Board) -> None:
    """The watchdog is quiet until the agent is there again; a last sign of life puts nothing off."""
    board.petted(110.0)
    ended_s = 110.0 + WATCHDOG_S - RESTART_DELAY_S / 2
    board.agent_ended(End.CRASH, ended_s)
    assert board.due(110.0 + WATCHDOG_S) == ()
    board.petted(ended_s)
    assert board.due_s == ended_s + RESTART_DELAY_S


def test_a_new_board_is_off_and_has_seen_nothing() -> None:
    board = Board(WATCHDOG_S, BOOT_TIMER_S)
    assert (board.is_on, board.last_step, board.due_s, board.triggers) == (False, "", None, ())
    assert all(board.agent_ended(End.CRASH_ON_TRIAL, 1.0) == () for _ in range(TRIAL_CRASHES))


def test_a_boot_begins_without_steps(board: Board) -> None:
    board.stepped("armed", 110.0)
    board.power_up(ResetReason.REBOOT, 111.0)
    assert board.last_step == ""


def test_on_trial_crashes_are_counted_and_a_boot_starts_the_count_again(board: Board) -> None:
    for _ in range(2):
        for _ in range(TRIAL_CRASHES):
            assert board.agent_ended(End.CRASH_ON_TRIAL, 110.0) == ()
        assert board.agent_ended(End.CRASH_ON_TRIAL, 110.0) == (BootUp(ResetReason.WATCHDOG),)
        assert board.due_s == 110.0 + BOOT_TIMER_S


def test_a_step_passes_unless_a_cut_was_asked_for_there_once(board: Board) -> None:
    assert board.cut_at("armed")
    assert board.stepped("state:ARMED", 110.0) == (LetPass(),)
    assert board.stepped("armed", 110.0) == (KillAgent(), LoseUnflushed(), BootUp(ResetReason.POWER_LOSS))
    assert board.triggers == ()
    assert board.stepped("armed", 111.0) == (LetPass(),)
    assert board.last_step == "armed"


def test_only_so_many_cuts_can_be_asked_for(board: Board) -> None:
    assert not board.cut_at("")
    assert all(board.cut_at("swap") for _ in range(MAX_TRIGGERS))
    assert not board.cut_at("swap")


def test_nothing_happens_without_power(board: Board) -> None:
    assert board.power_off() == (KillAgent(), LoseUnflushed())
    assert not board.is_on
    assert board.due_s is None
    assert board.due(10_000.0) == ()
    board.power_up(ResetReason.POWER_LOSS, 200.0)
    assert board.is_on
