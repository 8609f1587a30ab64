"""What makes a simulated board reset, and what it does then: the rules that every supervisor plays by. Pure.

* An agent that asks for a reboot is a reset with reason ``reboot``.
* Any other end of the agent is a crash: it is started again in the same boot, but in a trial only ``TRIAL_CRASHES``
  times, then the board resets with reason ``watchdog``.
* An agent that does not pet for ``watchdog_s``, and a boot in which no agent pets within ``boot_timer_s``, are reset
  with reason ``watchdog``.
* The agent waits at each step for leave. A power cut asked for at that step takes the agent and what was not flushed,
  and the board boots again with reason ``power-loss``.

Each event gives the actions that the supervisor performs, in their order. Moments are monotonic seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from device.bootenv import ResetReason

if TYPE_CHECKING:
    from collections.abc import Sequence

TRIAL_CRASHES = 3
RESTART_DELAY_S = 0.2
MAX_TRIGGERS = 16


class End(enum.Enum):
    """How an agent ended."""

    REBOOT = "reboot"
    CRASH = "crash"
    CRASH_ON_TRIAL = "crash on trial"


@dataclass(frozen=True, slots=True)
class KillAgent:
    """End the agent at once, if one runs."""


@dataclass(frozen=True, slots=True)
class LoseUnflushed:
    """The medium loses what was not flushed."""


@dataclass(frozen=True, slots=True)
class BootUp:
    """Let the bootloader decide and record this boot, then start the agent if the image gets that far."""

    reason: ResetReason


@dataclass(frozen=True, slots=True)
class StartAgent:
    """Start the agent again in the same boot."""


@dataclass(frozen=True, slots=True)
class LetPass:
    """Tell the agent that it may go on after the step it announced."""


Action: TypeAlias = KillAgent | LoseUnflushed | BootUp | StartAgent | LetPass


class Board:
    """One board; nothing runs before ``power_up``."""

    def __init__(self, watchdog_s: float, boot_timer_s: float) -> None:
        """Take the patience of its two timers."""
        self._watchdog_s = watchdog_s
        self._boot_timer_s = boot_timer_s
        self._crashes = 0
        self._deadline_s: float | None = None
        self._restart_at_s: float | None = None
        self._triggers: list[str] = []
        self.is_on = False
        self.last_step = ""

    @property
    def triggers(self) -> Sequence[str]:
        """Steps at which a power cut was asked for."""
        return tuple(self._triggers)

    @property
    def due_s(self) -> float | None:
        """When ``due`` wants to be called, None for never."""
        return min((moment for moment in (self._deadline_s, self._restart_at_s) if moment is not None), default=None)

    def power_up(self, reason: ResetReason, now_s: float) -> tuple[Action, ...]:
        """The board boots; nothing runs on it."""
        self.is_on = True
        self.last_step = ""
        self._crashes = 0
        self._restart_at_s = None
        self._deadline_s = now_s + self._boot_timer_s
        return (BootUp(reason),)

    def power_off(self) -> tuple[Action, ...]:
        """The power fails and stays away."""
        self.is_on = False
        self._deadline_s = self._restart_at_s = None
        return (KillAgent(), LoseUnflushed())

    def power_cut(self, now_s: float) -> tuple[Action, ...]:
        """The power fails and comes back."""
        return (*self.power_off(), *self.power_up(ResetReason.POWER_LOSS, now_s))

    def cut_at(self, trigger: str) -> bool:
        """Cut the power once when the agent announces that step; False when too many are asked for already."""
        if not trigger or len(self._triggers) >= MAX_TRIGGERS:
            return False
        self._triggers.append(trigger)
        return True

    def petted(self, now_s: float) -> None:
        """The agent is alive."""
        self._deadline_s = now_s + self._watchdog_s

    def stepped(self, step: str, now_s: float) -> tuple[Action, ...]:
        """The agent announced a step."""
        self.last_step = step
        trigger = next((trigger for trigger in self._triggers if matches(trigger, step)), None)
        if trigger is None:
            return (LetPass(),)
        self._triggers.remove(trigger)
        return self.power_cut(now_s)

    def agent_ended(self, end: End, now_s: float) -> tuple[Action, ...]:
        """The agent ended by itself."""
        if end is End.REBOOT:
            return self.power_up(ResetReason.REBOOT, now_s)
        self._crashes += 1
        if end is End.CRASH_ON_TRIAL and self._crashes > TRIAL_CRASHES:
            return self.power_up(ResetReason.WATCHDOG, now_s)
        self._deadline_s = None
        self._restart_at_s = now_s + RESTART_DELAY_S
        return ()

    def due(self, now_s: float) -> tuple[Action, ...]:
        """Time went by."""
        if self._deadline_s is not None and now_s >= self._deadline_s:
            return (KillAgent(), *self.power_up(ResetReason.WATCHDOG, now_s))
        if self._restart_at_s is not None and now_s >= self._restart_at_s:
            self._restart_at_s = None
            self._deadline_s = now_s + self._boot_timer_s
            return (StartAgent(),)
        return ()


def matches(trigger: str, step: str) -> bool:
    """Whether a power cut asked for at ``trigger`` happens at ``step``."""
    if trigger == "swap":
        return step == "trial"
    wanted, reached = _percent(trigger), _percent(step)
    if wanted is not None and reached is not None:
        return reached >= wanted
    return trigger == step


def _percent(step: str) -> int | None:
    number = step.removeprefix("staging:").removesuffix("%")
    return int(number) if step.startswith("staging:") and number.isdigit() else None
