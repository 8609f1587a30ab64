"""A hostile hub and what says what to do: orders, closings, pauses, halts, permits and leases (P2, P6, D11).

Every test ends in the same wave going through once the hub plays by the rules.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.device_directory import DEVICE, HUB
from tests.device_kit import WAVE
from wavemesh.codec.statements import encode
from wavemesh.session.frames import ResourceKey
from wavemesh.trust.envelope import sign_as_node, sign_statement
from wavemesh.trust.statements import (
    Envelope,
    HoldList,
    Lease,
    LeaseGrant,
    Pause,
    Permit,
    UpdateState,
    WaveClosed,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from tests.security.hostile_kit import Stage

OTHER_HUB = "region/midwest/store/store-209"


def order_of(stage: Stage, **changes: Any) -> WaveOrder:
    """What control would sign, but for the changes."""
    now = datetime.now(UTC)
    fields: dict[str, Any] = {
        "wave_id": WAVE,
        "generation": 1,
        "state": WaveState.RUNNING,
        "cohort": "retail-us-midwest",
        "device_class": "pos-tablet",
        "hardware_revision": "r2",
        "store": HUB.path,
        "devices": (DEVICE.name,),
        "release": stage.hub.release.name,
        "policy_digest": stage.hub.policy_digest,
        "least_hold_epoch": 1,
        "issued_at": now,
        "expires_at": now + timedelta(hours=1),
    }
    return WaveOrder(**{**fields, **changes})


async def refuses_order(stage: Stage, content: bytes, gate: str, says: str = "", store: str = "store-208") -> None:
    await stage.refuses("order", f"{WAVE}/{store}", content, gate, says)


def lease_of(**changes: Any) -> Lease:
    now = datetime.now(UTC)
    fields = {"lease_id": "f" * 32, "attempt": 1, "granted_at": now, "expires_at": now + timedelta(minutes=1)}
    return Lease(**{"wave_id": WAVE, "device": DEVICE.path, **fields, **changes})


def permit_of(stage: Stage, **changes: Any) -> Permit:
    now, firmware = datetime.now(UTC), stage.hub.release.firmware
    assert firmware is not None
    fields: dict[str, Any] = {
        "wave_id": WAVE,
        "device": DEVICE.path,
        "attempts": 3,
        "generation": 1,
        "firmware": firmware.digest,
        "issued_at": now,
        "expires_at": now + timedelta(hours=1),
        "hub_incarnation": "1" * 32,
    }
    return Permit(**{**fields, **changes})


def serve_grant(stage: Stage, lease: Envelope, permit: Envelope) -> None:
    stage.hub.serve("lease", WAVE, encode(LeaseGrant(lease, permit)))


async def refuses_grant(stage: Stage, lease: Envelope, permit: Envelope, gate: str, says: str = "") -> None:
    await stage.refuses("lease", WAVE, encode(LeaseGrant(lease, permit)), gate, says)


async def verified_without_lease(stage: Stage) -> None:
    """Staged and waiting for its turn."""
    stage.hub.grants_leases = False
    stage.hub.order()
    await stage.hub.until_state(UpdateState.VERIFIED)


async def goes_on(stage: Stage) -> None:
    """The hub grants what it ought to."""
    stage.hub.grants_leases = True
    stage.hub.grant(1)
    await stage.updates()


# --- orders ----------------------------------------------------------------------------------------------------------


async def test_forged_order(stage: Stage) -> None:
    """By the hub's own key, by no key, by keys that are not control's: none is an order."""
    order = order_of(stage)
    for envelope in (
        sign_as_node(order, stage.hub.me),
        sign_statement(order, []),
        sign_statement(order, [stage.hub.keys.online, *stage.hub.keys.releases]),
    ):
        await refuses_order(stage, encode(envelope), "signature")
    await stage.updates(generation=1)


async def test_order_of_another_store(stage: Stage) -> None:
    """Control signed it, for the store next door (D11: the store is bound at enrolment)."""
    content = stage.hub.forged(order_of(stage, store=OTHER_HUB))
    await refuses_order(stage, content, "signature", "holds the order")
    await refuses_order(stage, content, "class", "this device is at", "store-209")
    stage.hub.forget("order", f"{WAVE}/store-209")
    await stage.updates(generation=1)


async def test_order_for_another_device(stage: Stage) -> None:
    """Nothing happens on it, and nothing is wrong with it: hubs hold such orders. Its permits would not fit."""
    before = stage.victim.standing()
    stage.hub.order(devices=("pos-02",))
    await stage.hub.until(lambda: ("order", 1) in stage.hub.accepted)
    serve_grant(
        stage, sign_as_node(lease_of(), stage.hub.me), sign_statement(permit_of(stage), [stage.hub.keys.control])
    )
    await stage.hub.until(lambda: bool(stage.hub.verdicts("lease")))
    await stage.looked_at_all()
    assert stage.hub.statuses[-1].state is UpdateState.IDLE
    assert stage.victim.standing().files == before.files
    stage.hub.forget("lease", WAVE)
    await stage.updates(generation=2)


@pytest.mark.parametrize(
    ("changes", "gate"), [({"device_class": "scanner"}, "class"), ({"hardware_revision": "r9"}, "hardware")]
)
async def test_order_for_another_class(stage: Stage, changes: dict[str, Any], gate: str) -> None:
    """An order that names this device under another class or revision is refused by that gate."""
    before = stage.victim.standing()
    stage.hub.order(**changes)
    await stage.hub.until(lambda: ("REFUSED", gate, 0) in stage.hub.words())
    assert stage.victim.standing().files == before.files
    await stage.updates(generation=2)


async def test_replayed_order(stage: Stage) -> None:
    """A paused wave cannot be resumed by its order of before the pause, nor by taking the pause away first."""
    running = stage.hub.forged(order_of(stage))
    stage.hub.grants_leases = False
    stage.hub.pause(2)
    await stage.hub.until_state(UpdateState.VERIFIED)
    await refuses_order(stage, running, "replay", "is held")
    stage.hub.forget("order", f"{WAVE}/store-208")
    await stage.hub.until_state(UpdateState.IDLE)
    again = stage.hub.forged(order_of(stage))
    await refuses_order(stage, again, "replay", "seen")
    stage.hub.grants_leases = True
    await stage.updates(generation=3)


async def test_order_replayed_after_the_close(stage: Stage) -> None:
    """What control closed is over: the order, its lease and its permit played again move nothing."""
    stage.victim.directory.lose_scanner_on("B")
    stage.hub.order()
    await stage.hub.until(lambda: ("ROLLED_BACK", "peripheral:scanner", 1) in stage.hub.words())
    stage.hub.close_wave()
    await stage.hub.until_state(UpdateState.IDLE)
    before = stage.victim.standing()
    stage.hub.forget("closed", WAVE)
    stage.hub.order(generation=2)
    await stage.hub.until(lambda: ("order", 2) in stage.hub.accepted)
    stage.hub.grant(2)
    await stage.hub.until(lambda: len(stage.hub.verdicts("lease")) > 1)
    await stage.looked_at_all()
    assert stage.hub.statuses[-1].state is UpdateState.IDLE
    assert stage.victim.standing().files == before.files
    assert stage.victim.document.waves[WAVE].closed
    stage.victim.directory.script("lsusb", 'echo "Bar Code scanner"')
    await stage.next_wave("143")


@pytest.mark.parametrize("state", [WaveState.PAUSED, WaveState.HALTED, WaveState.RUNNING], ids=lambda one: one.name)
async def test_forged_pause_halt_and_resume(stage: Stage, state: WaveState) -> None:
    """Of the hub's own making none of them counts: the wave stands as control's last word has it."""
    stage.hub.grants_leases = False
    if state is WaveState.RUNNING:
        stage.hub.pause(1)
    else:
        stage.hub.order()
    await stage.hub.until_state(UpdateState.VERIFIED)
    pauses = (Pause("operator:alice", "forged"),) if state is WaveState.PAUSED else ()
    order = order_of(stage, generation=9, state=state, pauses=pauses)
    for envelope in (sign_as_node(order, stage.hub.me), sign_statement(order, [stage.hub.keys.online])):
        await refuses_order(stage, encode(envelope), "signature")
    assert stage.hub.statuses[-1].state is UpdateState.VERIFIED
    stage.hub.grants_leases = True
    await stage.updates(generation=2)


async def test_forged_close(stage: Stage) -> None:
    """A wave is over when control says so, not when the hub does, and not by the word about another wave."""
    await verified_without_lease(stage)
    closed = WaveClosed(WAVE, WaveState.CLOSED, datetime.now(UTC))
    forged = encode(sign_as_node(closed, stage.hub.me))
    await stage.refuses("closed", WAVE, forged, "signature")
    other = stage.hub.forged(WaveClosed("7", WaveState.CLOSED, datetime.now(UTC)))
    await stage.refuses("closed", WAVE, other, "signature", "holds")
    stage.hub.forget("closed", WAVE)
    await goes_on(stage)


async def test_late_close(stage: Stage) -> None:
    """A genuine close that the hub kept until the trial ends nothing half-way: the trial finishes and is reported."""
    stage.hub.answer_trials_as = "nothing"
    stage.hub.order()
    await stage.hub.until_state(UpdateState.TRIAL)
    stage.hub.close_wave()
    await stage.hub.until(lambda: bool(stage.hub.verdicts("closed")))
    assert stage.hub.statuses[-1].state is UpdateState.TRIAL
    stage.hub.answer_trials_as = "control"
    await stage.updates()
    await stage.hub.until_state(UpdateState.IDLE)


async def test_forged_time(stage: Stage) -> None:
    """Old words of control's, genuine as they are, do not turn the device's clock floor back."""
    stage.hub.hold(epoch=2)
    await stage.hub.until(lambda: len(stage.hub.verdicts("holds")) == 2)
    floor = stage.victim.document.clock_floor
    old = order_of(stage, wave_id="7", issued_at=datetime(2026, 1, 2, tzinfo=UTC))
    stage.hub.serve("order", "7/store-208", stage.hub.forged(old))
    await stage.hub.until(lambda: ResourceKey("order", "7/store-208") in stage.hub.taken)
    assert stage.victim.document.clock_floor >= floor
    replayed = stage.hub.forged(HoldList(2, (), datetime(2026, 1, 2, tzinfo=UTC)))
    await stage.refuses("holds", "fleet", replayed, "replay", "older")
    assert stage.victim.document.clock_floor >= floor
    stage.hub.forget("order", "7/store-208")
    stage.hub.hold(epoch=3)
    stage.hub.order()
    await stage.updates()


# --- leases and permits ----------------------------------------------------------------------------------------------


async def test_permit_of_somebody_else(stage: Stage) -> None:
    """Genuine permits and leases are for one device in one wave (semantics, "Permits and leases")."""
    await verified_without_lease(stage)
    other: dict[str, Any] = {"device": f"{HUB.path}/device/pos-02"}
    past: dict[str, Any] = {"wave_id": "141"}
    for lease, permit in (({}, other), ({}, past), (other, {}), (past, {})):
        signed = sign_statement(permit_of(stage, **permit), [stage.hub.keys.control])
        leased = sign_as_node(lease_of(**lease), stage.hub.me)
        await refuses_grant(stage, leased, signed, "permit", "not for this device")
    await goes_on(stage)


async def test_forged_permit(stage: Stage) -> None:
    """A hub permits nothing: not by its own key, not by others' (P6)."""
    await verified_without_lease(stage)
    permit = permit_of(stage, attempts=99)
    for envelope in (sign_as_node(permit, stage.hub.me), sign_statement(permit, [stage.hub.keys.online])):
        await refuses_grant(stage, sign_as_node(lease_of(), stage.hub.me), envelope, "signature")
    await goes_on(stage)


async def test_lease_of_another_hub(stage: Stage) -> None:
    """Only this device's own hub leases to it: neither the store next door nor the device itself, nor an operator."""
    await verified_without_lease(stage)
    permit = sign_statement(permit_of(stage), [stage.hub.keys.control])
    for signer in (OTHER_HUB, DEVICE.path, "operator/alice"):
        lease = sign_as_node(lease_of(), stage.hub.credentials(signer))
        await refuses_grant(stage, lease, permit, "signature")
    await goes_on(stage)


async def test_expired_lease_and_permit(stage: Stage) -> None:
    """Neither ARMs after its time, and both say which of the two it was."""
    await verified_without_lease(stage)
    before = stage.victim.standing()
    past = datetime.now(UTC) - timedelta(seconds=1)
    hub, permit = stage.hub, sign_statement(permit_of(stage), [stage.hub.keys.control])
    serve_grant(stage, sign_as_node(lease_of(expires_at=past), hub.me), permit)
    await hub.until(lambda: hub.statuses[-1].gate == "lease-expired")
    assert stage.victim.standing().files == before.files
    expired = sign_statement(permit_of(stage, expires_at=past), [hub.keys.control])
    serve_grant(stage, sign_as_node(lease_of(), hub.me), expired)
    await hub.until(lambda: ("REFUSED", "permit", 0) in hub.words())
    assert stage.victim.standing().files == before.files
    assert [line for line in stage.victim.log() if "lease-expired" in line]
    await goes_on(stage)


@pytest.mark.parametrize("stage", [{"budget_mins": "0.025"}], indirect=True)
async def test_permit_used_up(stage: Stage) -> None:
    """The device itself counts: a permit for one attempt, played again with a new lease, is refused."""
    hub = stage.hub
    hub.attempts_allowed, hub.lease_s = 1, 1.5
    hub.answer_trials_as = "down"
    hub.order()
    await hub.until(lambda: ("INCONCLUSIVE", "health-authority", 1) in hub.words())
    await hub.until(lambda: ("REFUSED", "permit", 1) in hub.words())
    assert stage.victim.directory.environment().trial is None
    assert stage.victim.document.waves[WAVE].burned == 1
    assert "allows 1 attempts, this would be number 2" in hub.outcomes()[-1].evidence
    hub.answer_trials_as, hub.attempts_allowed, hub.lease_s = "", 3, 60.0
    hub._granted.clear()
    await hub.until(lambda: ("UPDATED", "", 2) in hub.words())


async def test_permit_for_other_firmware(stage: Stage) -> None:
    """A permit names the firmware it is for: it cannot be spent on another release."""
    await verified_without_lease(stage)
    before = stage.victim.standing()
    config = stage.hub.release.config
    assert config is not None
    other = sign_statement(permit_of(stage, firmware=config.digest), [stage.hub.keys.control])
    serve_grant(stage, sign_as_node(lease_of(), stage.hub.me), other)
    await stage.hub.until(lambda: ("REFUSED", "permit", 0) in stage.hub.words())
    assert stage.victim.standing().files == before.files
    await goes_on(stage)
