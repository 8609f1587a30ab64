"""A few nights, the same night twice, and each checker seeing what it is for."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest

from tests.simulation import region as region_module
from tests.simulation import words
from tests.simulation.engine import World, drive
from tests.simulation.facts import Facts, Halt, Quality
from tests.simulation.faults import Chaos
from tests.simulation.kinds import Fault
from tests.simulation.run import run_seed
from wavemesh.session.frames import HeldResource, ResourceKey, ResourceVersion
from wavemesh.session.sqlite import SqliteResources
from wavemesh.trust.statements import Hold, HoldList, OutcomeKind, Permit, UpdateState, WaveState

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

CALM_S = 3600.0
IN_A_PROCESS = """
import hashlib, json
from tests.simulation.run import run_seed
result = run_seed(5)
print(json.dumps(hashlib.sha256("\\n".join(map(str, result.trace)).encode()).hexdigest()))
"""


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# 85: a store hub restored while devices are inside swaps that its older disk does not know.
@pytest.mark.parametrize("seed", [*range(1, 20), 85])
def test_a_night(seed: int) -> None:
    assert run_seed(seed, keeps_trace=False).failures == (), f"python -m tests.simulation --from {seed} --trace"


def test_the_same_seed_is_the_same_night_in_every_process() -> None:
    def digest(hash_seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", IN_A_PROCESS]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=50)
        return str(json.loads(done.stdout))

    assert digest("1") == digest("2")


def test_a_night_has_its_faults_and_a_seed_that_fails_says_where() -> None:
    whole = SqliteResources.store

    async def keeps_removed(self: SqliteResources, tx: Any, changed: Any, removed: object) -> None:
        await whole(self, tx, changed, ())

    result = run_seed(5, patches=[patch.object(SqliteResources, "store", keeps_removed)])
    assert sum(result.faults.values()) == 20
    assert result.failures
    assert any(entry.event == "violated" for entry in result.trace)


def test_every_kind_of_fault_is_described_and_done() -> None:
    for kind in Fault:
        assert kind.weight > 0
        assert callable(getattr(Chaos, f"_{kind.name.lower()}"))


def test_a_coroutine_that_really_waits_is_an_error() -> None:
    class Never:
        def __await__(self) -> Generator[None, None, None]:
            while True:
                yield

    async def waits() -> None:
        await Never()

    with pytest.raises(RuntimeError, match="does not know"):
        drive(waits())


# -- the checkers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def region() -> Iterator[Any]:
    """An hour without faults, so that there is something to violate."""
    words.fresh()
    with ExitStack() as stack:
        stack.enter_context(words.patched())
        stack.enter_context(patch.object(region_module, "BIG", 12))
        region = region_module.Region(3)
        region.begin()
        region.world.run(CALM_S)
        assert region.facts.failures == []
        yield region


def _armed(region: Any, number: int = 0, **changes: Any) -> Any:
    """A device as it would be at the moment of ARM."""
    device = region.devices[number]
    wave = next(iter(region.control.rows.waves.values()))
    target = SimpleNamespace(
        wave_id=wave.wave_id,
        release="next",
        version="3.0.0",
        firmware=region.releases["next"].firmware.digest,
        boot=SimpleNamespace(slot=device.record.boot.slot.other),
        rules=SimpleNamespace(rollback_on_health_loss_s=180.0, hold_max_age_s=3600.0 * 24),
    )
    label = replace(device.slots.label(device.record.boot.slot), firmware=target.firmware)
    device.slots.labels[target.boot.slot] = label
    now = device.clock.now()
    region.facts.permits[wave.wave_id, device.path] = [
        Permit(wave.wave_id, device.path, 3, 1, None, now, now + timedelta(hours=9), "i")
    ]
    progress = {"target": SimpleNamespace(**{**vars(target), **changes}), "attempt": 2, "wave_id": wave.wave_id}
    device.progress = SimpleNamespace(state=UpdateState.ARMED, lease_expires_at=now, **progress)
    return device


def _failed(region: Any, requirement: str) -> bool:
    return any(failure.startswith(f"{requirement}:") for failure in region.facts.failures)


def test_arming_as_it_should_be_is_seen_as_such(region: Any) -> None:
    region.facts.armed(_armed(region))
    assert region.facts.failures == []


def test_one_device_too_many(region: Any) -> None:
    most = next(iter(region.control.rows.waves.values())).policy.guardrails.max_concurrent_swaps
    for number in range(most):
        region.facts.armed(_armed(region, number))
    assert region.facts.failures == []
    region.facts.armed(_armed(region, most))
    assert _failed(region, "H6")


def test_an_attempt_burned_twice(region: Any) -> None:
    region.facts.armed(_armed(region))
    region.facts.armed(region.devices[0])
    assert _failed(region, "P6")


def test_an_arm_without_a_permit(region: Any) -> None:
    device = _armed(region)
    region.facts.permits.clear()
    region.facts.armed(device)
    assert _failed(region, "P6")


@pytest.mark.parametrize(
    ("requirement", "changes"),
    [
        ("P2", {"version": "1.0.0"}),
        ("D3", {"firmware": words.Trust}),
        ("P2", {"rules": SimpleNamespace(rollback_on_health_loss_s=180.0, hold_max_age_s=1.0)}),
    ],
)
def test_an_image_that_must_not_be_armed(region: Any, requirement: str, changes: dict[str, Any]) -> None:
    region.facts.armed(_armed(region, **changes))
    assert _failed(region, requirement)


def test_a_held_and_a_revoked_release(region: Any) -> None:
    device, sink = _armed(region), region.devices[0].equipment.sink
    held = HoldList(2, (Hold("next", "", "bad"),), device.clock.now())
    sink._believe(ResourceKey("holds", "fleet"), held)
    region.facts.armed(device)
    assert _failed(region, "P2")
    region.facts.failures.clear()
    sink._verifier.trusted = words.Trust(2, region.releases, frozenset({"next"}), device.clock.now())
    region.facts.armed(_armed(region, 0))
    assert any("revoked" in failure for failure in region.facts.failures)


def test_more_exposed_by_a_halt_than_had_permits(region: Any) -> None:
    device = _armed(region)
    region.facts.halts[device.progress.wave_id] = Halt(0.0, frozenset())
    region.facts.armed(device)
    assert _failed(region, "P6")


def test_a_permit_signed_after_the_halt(region: Any) -> None:
    wave = next(iter(region.control.rows.waves.values()))
    region.facts.halts[wave.wave_id] = Halt(0.0, frozenset())
    region.facts.permit_signed(SimpleNamespace(wave_id=wave.wave_id, device="x"))
    assert _failed(region, "P6")


def test_a_halt_over_a_good_release(region: Any) -> None:
    wave = next(iter(region.control.rows.waves.values()))
    bad = SimpleNamespace(device=wave.devices[0], kind=OutcomeKind.SILENT, gate="watchdog")
    wave.outcomes[wave.devices[0]] = bad
    region.facts.checkers.on_halt(wave)
    assert _failed(region, "C2")


@pytest.mark.parametrize(
    ("what", "state", "is_found"),
    [
        ("as it should be", WaveState.CLOSED, False),
        ("one pending", WaveState.CLOSED, True),
        ("one pending", WaveState.HALTED, False),
        ("one pending, expired", WaveState.CLOSED, False),
        ("a stranger", WaveState.CLOSED, True),
    ],
)
def test_a_wave_that_closes_without_all_outcomes_or_with_others(
    region: Any, *, what: str, state: WaveState, is_found: bool
) -> None:
    wave = next(iter(region.control.rows.waves.values()))
    now = region.control.clock.now()
    wave.state, wave.expires_at = state, now - timedelta(hours=1) if "expired" in what else now + timedelta(hours=1)
    wave.outcomes = dict.fromkeys(wave.devices, SimpleNamespace(by_device=False))
    region.facts.closed.discard(wave.wave_id)
    if "pending" in what:
        del wave.outcomes[wave.devices[0]]
    if "stranger" in what:
        wave.outcomes["region/midwest/store/x/device/y"] = SimpleNamespace(by_device=False)
    region.facts.closing(wave)
    assert _failed(region, "H7") is is_found


def test_a_bad_image_found_healthy_and_an_empty_slot_booted(region: Any) -> None:
    device = region.devices[0]
    label = device.slots.label(device.record.boot.slot)
    region.facts.qualities[label.firmware.sha256] = Quality(passes_probes=False)
    region.facts.healthy(device)
    assert _failed(region, "D4")
    device.slots.labels[device.record.boot.slot] = None
    region.facts.booted(device)
    assert _failed(region, "D9")


def test_a_group_with_two_inside(region: Any) -> None:
    store = region.stores[0]
    wave = next(iter(region.control.rows.waves.values()))
    group = SimpleNamespace(role="till", group="a", min_up=1)
    policy = SimpleNamespace(guardrails=SimpleNamespace(availability=(group,)))
    order = SimpleNamespace(policy_digest="d", devices=("pos-00", "pos-01"))
    store.hub.belief.orders[wave.wave_id] = order
    store.hub.belief.policies["d"] = policy
    until = store.clock.now() + timedelta(minutes=5)
    region.facts.inside[1] = SimpleNamespace(hub=store, device=f"{store.path}/device/pos-01", until=until)
    slot = SimpleNamespace(wave_id=wave.wave_id, device=f"{store.path}/device/pos-00")
    region.facts.checkers.on_decision(store, SimpleNamespace(granted=(slot,), inferred=()))
    assert _failed(region, "H6")


def test_what_differs_at_quiescence(region: Any) -> None:
    checkers, device, store = region.facts.checkers, region.devices[0], region.stores[0]
    checkers.quiet()
    assert region.facts.failures == []
    extra = HeldResource(ResourceKey("order", "w9/big"), ResourceVersion("e", 1), "d")
    with patch.object(type(device.equipment.sink), "held", lambda _: [extra]):
        checkers.resources_agree()
    assert _failed(region, "M3")
    wave = next(iter(region.control.rows.waves.values()))
    wave.closed_at = None
    region.facts.closed.clear()
    path = wave.targets[store.path][0]
    wave.outcomes.pop(path, None)
    store.hub.store._ledgers.setdefault(wave.wave_id, {})[path] = SimpleNamespace(rank=1)
    checkers.ledgers_agree()
    assert _failed(region, "S3")
    store.hub.log._first_number -= 1
    checkers.queues_are_empty()
    assert _failed(region, "M6")
    device.is_up = False
    checkers.devices_are_well()
    assert _failed(region, "D9")


def test_what_is_left_when_all_is_over(region: Any) -> None:
    wave = next(iter(region.control.rows.waves.values()))
    wave.closed_at, wave.state = None, WaveState.RUNNING
    region.facts.checkers.over()
    assert _failed(region, "M3")


def test_a_violation_is_a_failure_and_is_told_once() -> None:
    facts = Facts()
    facts.world = World(1, facts)
    facts.violation("region/midwest", "report 3 came after 1")
    facts.violation("region/midwest", "report 3 came after 1")
    assert facts.failures == ["M2: region/midwest: report 3 came after 1"]
