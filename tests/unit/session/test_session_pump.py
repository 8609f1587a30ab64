"""The pump against a driver that takes no frame."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

import pytest

from wavemesh.errors import LinkDownError
from wavemesh.runtime.clock import SystemClock
from wavemesh.session.pump import Pump

if TYPE_CHECKING:
    from collections.abc import Sequence

    from wavemesh.session.liveness import SessionEnd


class Talking:
    """A machine that has so many frames to say, and wants to be woken after that time again and again."""

    end: SessionEnd | None = None

    def __init__(self, timer_s: float, frames: int = 1000) -> None:
        self._timer_s = timer_s
        self._left = frames

    def receive(self, frame: str, now: float) -> None:
        raise NotImplementedError

    def take_effects(self) -> Sequence[str]:
        return ()

    def work_done(self, now: float) -> None:
        raise NotImplementedError

    def get_timer(self) -> float:
        return SystemClock().monotonic() + self._timer_s

    def handle_timer(self, now: float) -> None:
        pass

    def next_frame(self, now: float) -> str | None:
        self._left -= 1
        return "frame" if self._left >= 0 else None


class Full:
    """Takes some frames at once and then no more."""

    def __init__(self, room: int) -> None:
        self.taken = 0
        self._room = room

    async def read(self) -> str | None:
        await asyncio.Event().wait()
        return None

    async def write(self, frame: str) -> None:
        if self.taken == self._room:
            await asyncio.Event().wait()
        self.taken += 1
        await asyncio.sleep(0)

    async def perform(self, effect: str) -> None:
        raise NotImplementedError

    async def prepare(self) -> None:
        pass


@pytest.mark.parametrize("timer_s", [0.05, math.inf])
async def test_a_peer_that_takes_no_frame_is_cut(timer_s: float) -> None:
    """Whether or not the machine itself wants to be woken before."""
    driver = Full(3)
    pump: Pump[str, str, str] = Pump(Talking(timer_s), driver, SystemClock(), stall_s=0.2)
    with pytest.raises(LinkDownError, match=r"took no frame for 0\.2 s"):
        await asyncio.wait_for(pump.run(), 5.0)
    assert driver.taken == 3


async def test_a_slow_peer_that_takes_frames_is_not_cut() -> None:
    """The bound is for one frame, not for all."""
    driver = Full(1000)

    async def slow(frame: str) -> None:
        driver.taken += 1
        await asyncio.sleep(0.05)  # plays: a peer that takes a frame in its time

    driver.write = slow  # type: ignore[method-assign]  # the same driver, slower
    pump: Pump[str, str, str] = Pump(Talking(math.inf), driver, SystemClock(), stall_s=0.4)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pump.run(), 0.8)
    assert driver.taken > 8


async def test_a_peer_with_nothing_to_take_is_not_cut() -> None:
    driver = Full(1000)
    pump: Pump[str, str, str] = Pump(Talking(0.05, frames=3), driver, SystemClock(), stall_s=0.2)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pump.run(), 0.5)
    assert driver.taken == 3
