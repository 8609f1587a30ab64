"""A trial's verdicts that no healthy lab produces: lapsed leases, wrong clocks, probes that take too long (D4)."""

from __future__ import annotations

import os
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from device.bootenv import Boot, ResetReason, SlotName
from device.config import ProbeContainment
from device.health import PingEnd, PingResult
from device.platform import BootRecord
from device.probes import Containment, ProbeRunner
from device.progress import Healthy, Progress, Rules, Target, Unhealthy
from device.trial import Trial
from wavemesh.errors import GateError
from wavemesh.trust.statements import Digest, OutcomeKind, UpdateState

if TYPE_CHECKING:
    from device.equipment import Equipment

NOW = datetime(2026, 5, 1, tzinfo=UTC)
B2 = Boot(SlotName.B, 2)
NOWHERE = Path("/nonexistent")
CONTAINMENT = Containment(ProbeContainment.BEST_EFFORT, "nobody", NOWHERE, NOWHERE)


class Bench:
    """What a trial works with, as the test has it."""

    def __init__(self, **changes: Any) -> None:
        self.pings: list[PingResult] = []
        self.time_trusted = True
        self.confirms = False
        self.monotonic_s = 100.0
        fields: dict[str, Any] = {
            "health_authority": "either",
            "rollback_on_health_loss_s": 30.0,
            "supervised": False,
            "hold_max_age_s": 60.0,
            "min_battery_percent": 0,
            "max_temperature_celsius": 70.0,
            "min_free_disk_bytes": 0,
            "require_dual_partition": True,
            "boot_probe": "",
            "peripheral_checks": (),
            "vendor_probes": (),
        }
        rules = Rules(**{**fields, **changes})
        self.target = Target("142", 1, "r", "2.0.0", Digest("a" * 64, 1), None, "", "", NOW, B2, rules)

    async def run(self, lease_left: timedelta = timedelta(minutes=1), began_s: float = 100.0) -> Any:
        timing = SimpleNamespace(ping_interval_s=0.05, probe_settle_s=0.0)
        equipment = SimpleNamespace(
            config=SimpleNamespace(timing=timing),
            clock=SimpleNamespace(now=lambda: NOW, monotonic=lambda: self.monotonic_s),
            log=SimpleNamespace(note=lambda _: None, alert=lambda _: None),
            record=BootRecord("b" * 32, B2, ResetReason.REBOOT),
            probes=ProbeRunner({"PATH": os.environ["PATH"]}, 10.0, CONTAINMENT),
            health=SimpleNamespace(ping=self._ping),
            facts=lambda: None,
            tracing=SimpleNamespace(check=lambda _: nullcontext(), probing=lambda _: nullcontext([])),
            check_time=self._check_time,
        )
        progress = Progress(
            UpdateState.TRIAL,
            "142",
            self.target,
            attempt=1,
            lease_expires_at=NOW + lease_left,
            trial_boot_id="b" * 32,
            trial_began_s=began_s,
        )
        return await Trial(cast("Equipment", equipment), self.target, progress).run()

    async def _ping(self, *_: Any) -> PingResult:
        self.time_trusted |= self.confirms
        return self.pings.pop(0) if len(self.pings) > 1 else self.pings[0]

    def _check_time(self) -> None:
        if not self.time_trusted:
            raise GateError("clock", "nobody confirmed it")


ACKNOWLEDGED = PingResult(PingEnd.ACKNOWLEDGED, "live", "by control")
SILENCE = PingResult(PingEnd.NOTHING, "", "no session")
DOWN = PingResult(PingEnd.AUTHORITY_DOWN, "live", "control is down")


def word(event: Any) -> tuple[str, OutcomeKind]:
    assert isinstance(event, Unhealthy), event
    return event.gate, event.verdict


async def test_a_sound_trial_is_healthy() -> None:
    bench = Bench(boot_probe="true", peripheral_checks=("true",), vendor_probes=("true",))
    bench.pings = [SILENCE, DOWN, ACKNOWLEDGED]
    assert isinstance(await bench.run(), Healthy)


async def test_a_lapsed_lease_proves_nothing() -> None:
    assert word(await Bench().run(timedelta(0))) == ("lease-expired", OutcomeKind.INCONCLUSIVE)


async def test_a_lease_that_lapsed_during_the_trial_had_not_lapsed_when_it_began() -> None:
    bench = Bench()
    bench.pings = [ACKNOWLEDGED]
    assert isinstance(await bench.run(timedelta(seconds=-5), began_s=90.0), Healthy)


async def test_a_clock_that_stays_untrusted_proves_nothing() -> None:
    bench = Bench(rollback_on_health_loss_s=0.3)
    bench.time_trusted = False
    bench.pings = [ACKNOWLEDGED]
    assert word(await bench.run()) == ("clock", OutcomeKind.INCONCLUSIVE)


@pytest.mark.parametrize(("left_s", "expected"), [(60, None), (-60, ("lease-expired", OutcomeKind.INCONCLUSIVE))])
async def test_a_clock_is_trusted_once_control_confirmed_it(
    left_s: int, expected: tuple[str, OutcomeKind] | None
) -> None:
    """A device without a battery-backed clock judges its lease when the acknowledgement has brought the time."""
    bench = Bench()
    bench.time_trusted = False
    bench.confirms, bench.pings = True, [ACKNOWLEDGED]
    ended = await bench.run(timedelta(seconds=left_s))
    assert isinstance(ended, Healthy) if expected is None else word(ended) == expected


async def test_slow_probes_run_into_the_boot_timer() -> None:
    assert word(await Bench(boot_probe="sleep 60", rollback_on_health_loss_s=0.5).run()) == (
        "boot-timer",
        OutcomeKind.ROLLED_BACK,
    )


async def test_the_budget_counts_from_the_trials_begin() -> None:
    """A restart of the agent gives no new budget."""
    assert word(await Bench(boot_probe="true").run(began_s=60.0)) == ("boot-timer", OutcomeKind.ROLLED_BACK)


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"boot_probe": "false"}, "boot-probe"),
        ({"peripheral_checks": ("echo | grep scanner",)}, "peripheral:scanner"),
        ({"vendor_probes": ("test 1 = till",)}, "vendor:till"),
    ],
)
async def test_a_probe_that_fails_is_named(changes: dict[str, Any], gate: str) -> None:
    assert word(await Bench(**changes).run()) == (gate, OutcomeKind.ROLLED_BACK)


async def test_only_the_hubs_word_makes_silence_inconclusive() -> None:
    bench = Bench(rollback_on_health_loss_s=0.3)
    bench.pings = [SILENCE]
    assert word(await bench.run()) == ("health-authority", OutcomeKind.ROLLED_BACK)
    bench.pings = [DOWN]
    assert word(await bench.run()) == ("health-authority", OutcomeKind.INCONCLUSIVE)


async def test_the_hubs_word_of_a_halt_ends_a_trial() -> None:
    bench = Bench()
    bench.pings = [PingResult(PingEnd.ACKNOWLEDGED, "halted", "by control")]
    assert word(await bench.run()) == ("halted", OutcomeKind.INCONCLUSIVE)
