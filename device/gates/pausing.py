"""PAUSED: a write that heat or power holds up, until it may go on or is given up.

It goes on once power and heat were well within their limits RESUME_LOOKS times in a row, so a value at the edge, or a
loose plug, does not make it flap. Past ``timing.pause_bound_s`` the gate refuses; what is staged stays, and the wave
takes it up again when the gate passes (both gates are transient).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from device.gates.local import Edge
from device.progress import Event, GateRefused, Obstructed, Unobstructed

if TYPE_CHECKING:
    from collections.abc import Callable

    from device.equipment import Equipment
    from device.progress import Progress, Target

RESUME_LOOKS = 3


class Pause:
    """The work of one PAUSED."""

    def __init__(self, equipment: Equipment, target: Target, progress: Progress, post: Callable[[Event], None]) -> None:
        """``progress`` says what paused it; ``post`` takes what holds it up from now on."""
        self._equipment = equipment
        self._target = target
        self._post = post
        self._words = (progress.gate, progress.evidence, progress.observed, progress.required)

    async def run(self) -> Event:
        """Wait until the write may go on, or is given up."""
        clock, timing = self._equipment.clock, self._equipment.config.timing
        began_s, calm_looks = clock.monotonic(), 0
        while True:
            finding = await self._equipment.gates.flashing_refusal(self._target.rules, Edge.WELL_WITHIN)
            calm_looks = calm_looks + 1 if finding is None else 0
            if calm_looks >= RESUME_LOOKS:
                return Unobstructed()
            if finding is not None and finding.words != self._words:
                self._words = finding.words
                self._post(Obstructed(*finding.words))
            if clock.monotonic() - began_s > timing.pause_bound_s:
                gate, evidence, observed, required = self._words
                return GateRefused(gate, f"paused for {timing.pause_bound_s:g} s: {evidence}", observed, required)
            await asyncio.sleep(timing.gate_interval_s)
