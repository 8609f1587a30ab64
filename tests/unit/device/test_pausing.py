"""A paused write goes on once it is calm, and is given up after its bound (D2)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from device.gates.findings import bad
from device.gates.local import Edge
from device.gates.pausing import Pause
from device.progress import Event, GateRefused, Obstructed, Progress, Unobstructed
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from device.gates.findings import Finding
    from device.progress import Rules

HOT = bad("temperature", "71.0 °C", "71.0 °C", "at most 65.0 °C")
LOW = bad("battery", "low", "39 %", "at least 45 %")


class Looks:
    """Gates that say one thing after the other, the last for ever; the clock goes on by a second a look."""

    def __init__(self, *findings: Finding | None) -> None:
        self._findings = list(findings)
        self.count = 0

    async def flashing_refusal(self, _rules: Rules, edge: Edge) -> Finding | None:
        assert edge is Edge.WELL_WITHIN
        self.count += 1
        return self._findings[min(self.count, len(self._findings)) - 1]

    def monotonic(self) -> float:
        return float(self.count)


async def pause(looks: Looks, bound_s: float = 100.0) -> tuple[Event, list[Event]]:
    timing = SimpleNamespace(pause_bound_s=bound_s, gate_interval_s=0.001)
    equipment = SimpleNamespace(gates=looks, clock=looks, config=SimpleNamespace(timing=timing))
    posted: list[Event] = []
    progress = Progress(UpdateState.PAUSED, "142", None, 0, *HOT.words[:2], observed="71.0 °C", required="at most 70")
    target = SimpleNamespace(rules=None)
    return await Pause(cast("Any", equipment), cast("Any", target), progress, posted.append).run(), posted


async def test_a_sensor_at_the_edge_does_not_flap() -> None:
    looks = Looks(None, HOT, None, None, HOT, None)
    event, _ = await pause(looks)
    assert (event, looks.count) == (Unobstructed(), 8)


async def test_what_holds_it_up_now_is_what_refuses() -> None:
    """D7: the gate named is the last that was seen to fail, with both of its values."""
    event, posted = await pause(Looks(HOT, LOW, LOW), bound_s=10.0)
    assert posted == [Obstructed(*HOT.words), Obstructed(*LOW.words)]
    assert event == GateRefused("battery", "paused for 10 s: low", "39 %", "at least 45 %")


async def test_calm_that_never_lasts_is_given_up_by_the_gate_that_paused() -> None:
    looks = Looks(*[None, None, HOT] * 40)
    event, _ = await pause(looks, bound_s=50.0)
    assert isinstance(event, GateRefused)
    assert event.gate == "temperature"
