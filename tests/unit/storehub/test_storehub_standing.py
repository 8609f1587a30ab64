"""Whether a wave may lease here: one reason at a time, the gravest first (P6, P7, semantics "Trust")."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

import pytest

from storehub.standing import PauseEffect, PauseHere, Standing, Surroundings, WaveStanding, standing_of
from tests.session_kit import Fleet
from tests.storehub_kit import WAVE, Control
from wavemesh.codec.statements import decode
from wavemesh.policy.document import policy_from_json
from wavemesh.policy.windows import Window
from wavemesh.trust.metadata import load_trusted
from wavemesh.trust.statements import Envelope, Hold, HoldList, Pause, WaveOrder, WaveState

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(Fleet.create(tmp_path_factory.mktemp("fleet")))


@pytest.fixture
def order(control: Control) -> WaveOrder:
    return decode(WaveOrder, decode(Envelope, control.order("pos-12").content).payload)


@pytest.fixture
def around(control: Control) -> Surroundings:
    return Surroundings(
        now=datetime.now(UTC),
        zone=ZoneInfo("America/Chicago"),
        trusted=load_trusted(control.root, control.trust, datetime.now(UTC), None),
        policy=policy_from_json(control.policy),
        holds=HoldList(1, (), datetime.now(UTC)),
        pauses=(),
    )


def test_nothing_against_it_is_live(order: WaveOrder, around: Surroundings) -> None:
    assert standing_of(order, around).standing is Standing.LIVE


@pytest.mark.parametrize(
    ("change", "gate"),
    [
        (lambda a: replace(a, policy=None), "signature"),
        (lambda a: replace(a, trusted=None), "signature"),
        (lambda a: replace(a, holds=None), "freshness"),
        (lambda a: replace(a, holds=HoldList(0, (), a.now)), "freshness"),
        (lambda a: replace(a, holds=HoldList(1, (), a.now - timedelta(hours=25))), "freshness"),
        (lambda a: replace(a, holds=HoldList(1, (Hold("fw", "", "smoke"),), a.now)), "hold"),
        (lambda a: replace(a, now=a.now + timedelta(days=2)), "permit"),
        (lambda a: replace(a, clock_gate="set back"), "clock"),
    ],
)
def test_what_keeps_a_wave_waiting_is_named(
    change: Callable[[Surroundings], Surroundings], gate: str, order: WaveOrder, around: Surroundings
) -> None:
    found = standing_of(order, change(around))
    assert (found.standing, found.gate) == (Standing.WAITING, gate)
    if gate == "signature":
        missing = "trust metadata" if change(around).trusted is None else f"the policy {order.policy_digest}"
        assert found.detail == f"{missing} is not held yet"


def test_a_swap_window_is_store_local(order: WaveOrder, around: Surroundings) -> None:
    """P7: 13:00 UTC in winter is 07:00 in Chicago."""
    policy = around.policy
    assert policy is not None
    windowed = replace(policy, windows=replace(policy.windows, swap=Window.parse("07:00-08:00")))
    at = datetime(2026, 1, 15, 13, 0, tzinfo=UTC)
    lasting = replace(order, expires_at=at + timedelta(days=1))
    inside = replace(around, policy=windowed, now=at, holds=HoldList(1, (), at))
    assert standing_of(lasting, inside).standing is Standing.LIVE
    outside = replace(inside, now=at + timedelta(hours=2))
    assert standing_of(lasting, outside).gate == "window"


def test_every_origin_pauses_on_its_own(order: WaveOrder, around: Surroundings) -> None:
    here = PauseHere(WAVE, "hub:store-209", "checksum", PauseEffect.PAUSE)
    other_wave = PauseHere("143", "operator:bob", "no", PauseEffect.PAUSE)
    paused = replace(order, pauses=(Pause("operator:alice", "lunch"),))
    assert standing_of(paused, around).detail == "operator:alice: lunch"
    both = standing_of(paused, replace(around, pauses=(here, other_wave)))
    assert (both.standing, both.detail) == (Standing.PAUSED, "hub:store-209: checksum; operator:alice: lunch")
    assert standing_of(order, replace(around, pauses=(here,))).standing is Standing.PAUSED
    assert standing_of(order, replace(around, pauses=(other_wave,))).standing is Standing.LIVE


def test_a_halt_beats_everything(order: WaveOrder, around: Surroundings) -> None:
    halt = PauseHere(WAVE, "operator:alice", "smoke", PauseEffect.HALT)
    halted = WaveStanding(Standing.HALTED, "halted", "operator:alice: smoke")
    assert standing_of(order, replace(around, pauses=(halt,), policy=None)) == halted


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (WaveState.HALTED, WaveStanding(Standing.HALTED, "halted", "halted by control")),
        (WaveState.CLOSED, WaveStanding(Standing.CLOSED, "", "closed by control")),
        (WaveState.PAUSED, WaveStanding(Standing.PAUSED, "", "paused by control")),
        (WaveState.PLANNED, WaveStanding(Standing.WAITING, "", "planned, not started")),
        (WaveState.RUNNING, WaveStanding(Standing.LIVE)),
    ],
)
def test_what_control_says_of_a_wave(
    state: WaveState, found: WaveStanding, order: WaveOrder, around: Surroundings
) -> None:
    assert standing_of(replace(order, state=state), around) == found
