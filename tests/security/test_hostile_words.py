"""A hostile hub and the words of others that it carries: operators' intents, acknowledgements of health (P2, D4)."""

from __future__ import annotations

import hashlib
import itertools
import secrets
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.device_directory import DEVICE, HUB
from tests.device_kit import WAVE
from wavemesh.codec.statements import encode
from wavemesh.trust.envelope import sign_as_node, sign_statement
from wavemesh.trust.statements import (
    AuthorityDown,
    Envelope,
    HealthAck,
    HealthPingAnswer,
    HoldList,
    IntentKind,
    OperatorIntent,
    Revocation,
    RevocationList,
    RevocationReach,
    UpdateState,
)

if TYPE_CHECKING:
    from tests.security.hostile_kit import HostileHub, Stage

OTHER_HUB = "region/midwest/store/store-209"
ROLLED_BACK = ("ROLLED_BACK", "operator", 1)


def rollback(**changes: Any) -> OperatorIntent:
    """An operator who wants this device's previous release."""
    fields: dict[str, Any] = {
        "intent_id": secrets.token_hex(16),
        "kind": IntentKind.ROLLBACK_DEVICE,
        "issued_at": datetime.now(UTC),
        "device": DEVICE.name,
        "reason": "scanner driver missing",
    }
    return OperatorIntent(**{**fields, **changes})


async def refuses_intent(stage: Stage, intent: OperatorIntent, envelope: Envelope) -> None:
    await stage.refuses("intent", intent.intent_id, encode(envelope), "signature")


async def rolls_back(stage: Stage) -> None:
    """The same by a real operator is done."""
    stage.hub.roll_back("scanner driver missing")
    await stage.hub.until(lambda: ROLLED_BACK in stage.hub.words())
    await stage.hub.until(lambda: stage.hub.statuses[-1].slot == "A")


# --- intents ---------------------------------------------------------------------------------------------------------


async def test_forged_rollback(stage: Stage) -> None:
    """Signed by the hub, by a device, by control's keys, by nobody: an operator's word is an operator's alone."""
    await stage.updates()
    for signer in (stage.hub.me, stage.hub.credentials(DEVICE.path), stage.hub.credentials(OTHER_HUB)):
        intent = rollback()
        await refuses_intent(stage, intent, sign_as_node(intent, signer))
    intent = rollback()
    await refuses_intent(stage, intent, sign_statement(intent, [stage.hub.keys.control]))
    assert stage.hub.statuses[-1].slot == "B"
    await rolls_back(stage)


async def test_rollback_by_a_revoked_operator(stage: Stage) -> None:
    """Whose certificate was taken back asks for nothing any more, not even with a word of before (ADR 10)."""
    await stage.updates()
    now = datetime.now(UTC)
    listed = RevocationList(1, (Revocation("operator/mallory", RevocationReach.NODE, now, "left"),), now)
    stage.hub.serve("revocations", "fleet", stage.hub.forged(listed))
    await stage.hub.until(lambda: bool(stage.hub.verdicts("revocations")))
    intent = rollback(issued_at=now - timedelta(days=1))
    await refuses_intent(stage, intent, sign_as_node(intent, stage.hub.credentials("operator/mallory")))
    await rolls_back(stage)


async def test_replayed_rollback(stage: Stage) -> None:
    """What was done once is not done again, even after the hub has played hundreds of others' intents (D11)."""
    await stage.updates()
    intent = rollback()
    content = encode(sign_as_node(intent, stage.hub.credentials("operator/alice")))
    stage.hub.serve("intent", intent.intent_id, content)
    await stage.hub.until(lambda: ROLLED_BACK in stage.hub.words())
    await stage.next_wave("143")
    before = stage.victim.standing()
    stage.hub.forget("intent", intent.intent_id)
    for number in range(300):
        other = rollback(device="pos-99", issued_at=datetime.now(UTC) + timedelta(milliseconds=number))
        envelope = sign_as_node(other, stage.hub.credentials("operator/alice"))
        stage.hub.serve("intent", other.intent_id, encode(envelope))
    await stage.hub.until(lambda: len(stage.hub.verdicts("intent")) >= 300)
    stage.hub.serve("intent", intent.intent_id, content)
    seen = len(stage.hub.verdicts("intent"))
    await stage.hub.until(lambda: len(stage.hub.verdicts("intent")) > seen)
    fresh = rollback(wave_id="142")
    stage.hub.serve("intent", fresh.intent_id, encode(sign_as_node(fresh, stage.hub.credentials("operator/alice"))))
    await stage.hub.until(lambda: stage.hub.is_answered(fresh.intent_id))
    assert stage.hub.words().count(ROLLED_BACK) == 1
    assert stage.victim.standing().files == before.files


@pytest.mark.parametrize("stage", [{"offline_rollback": "false"}], indirect=True, ids=["supervised"])
async def test_forged_approval(stage: Stage) -> None:
    """A failed trial of a supervised device is signed off by an operator, about that attempt, or not at all (D5)."""
    hub = stage.hub
    stage.victim.directory.lose_scanner_on("B")
    hub.order()
    await hub.until_state(UpdateState.AWAITING_SIGNOFF)
    fields: dict[str, Any] = {"kind": IntentKind.APPROVE_ROLLBACK, "wave_id": WAVE, "attempt": 1}
    for signer in (hub.me, hub.credentials(DEVICE.path), hub.credentials(OTHER_HUB)):
        intent = rollback(**fields)
        await refuses_intent(stage, intent, sign_as_node(intent, signer))
    intent = rollback(**fields)
    await refuses_intent(stage, intent, sign_statement(intent, [hub.keys.control]))
    alice = hub.credentials("operator/alice")
    for genuine in (
        rollback(**{**fields, "wave_id": "141"}),
        rollback(**{**fields, "attempt": 2}),
        rollback(wave_id=WAVE),
    ):
        hub.serve("intent", genuine.intent_id, encode(sign_as_node(genuine, alice)))
        await hub.until(partial(hub.is_answered, genuine.intent_id))
    assert (hub.statuses[-1].state, hub.statuses[-1].slot) == (UpdateState.AWAITING_SIGNOFF, "B")
    hub.approve()
    await hub.until(lambda: ("ROLLED_BACK", "peripheral:scanner", 1) in hub.words())
    stage.victim.directory.script("lsusb", 'echo "Bar Code scanner"')
    await stage.next_wave("143")


async def test_forged_override_of_hold_age(stage: Stage) -> None:
    """Only an operator makes an old view of holds younger, and only for the wave and store that the word names."""
    stage.hub.forget("holds", "fleet")
    await stage.hub.until(lambda: "fleet" not in [one.key.name for one in stage.victim.document.held])
    old = HoldList(2, (), datetime.now(UTC) - timedelta(hours=25))
    stage.hub.serve("holds", "fleet", stage.hub.forged(old))
    stage.hub.order()
    await stage.hub.until(lambda: bool(stage.hub.statuses) and stage.hub.statuses[-1].gate == "freshness")
    alice = stage.hub.credentials("operator/alice")
    fields: dict[str, Any] = {"kind": IntentKind.OVERRIDE_HOLD_AGE, "device": "", "wave_id": WAVE}
    forged = rollback(**fields)
    await refuses_intent(stage, forged, sign_as_node(forged, stage.hub.me))
    for other in (rollback(**fields, stores=("store-209",)), rollback(**{**fields, "wave_id": "7"})):
        stage.hub.serve("intent", other.intent_id, encode(sign_as_node(other, alice)))
    await stage.hub.until(lambda: len(stage.hub.verdicts("intent")) == 2)
    count = len(stage.hub.pings)
    await stage.hub.until(lambda: len(stage.hub.pings) > count + 15)  # long enough for the last checks before ARM
    assert (stage.hub.statuses[-1].state, stage.hub.statuses[-1].gate) == (UpdateState.VERIFIED, "freshness")
    genuine = rollback(**fields, stores=("store-208",))
    stage.hub.serve("intent", genuine.intent_id, encode(sign_as_node(genuine, alice)))
    await stage.updates()


# --- health ----------------------------------------------------------------------------------------------------------


def ack_by(hub: HostileHub, digest: str, authority: str, *, by_hub: bool) -> HealthPingAnswer:
    ack = HealthAck(digest, authority, datetime.now(UTC))
    envelope = sign_as_node(ack, hub.me) if by_hub else sign_statement(ack, [hub.keys.online])
    return HealthPingAnswer(envelope, "live", None)


def control_ack(hub: HostileHub, digest: str) -> HealthPingAnswer:
    ack = HealthAck(digest, "control", datetime.now(UTC))
    return HealthPingAnswer(sign_statement(ack, [hub.keys.control]), "live", None)


def of_another_boot(hub: HostileHub, _: str) -> HealthPingAnswer:
    """Control acknowledged a ping of before the reboot; it is played for the trial."""
    first = next(ping for ping in hub.pings if ping.slot == "A")
    return control_ack(hub, hashlib.sha256(encode(first)).hexdigest())


FORGED_ACKS: tuple[tuple[Any, str], ...] = (
    (lambda hub, digest: ack_by(hub, digest, "control", by_hub=True), "signature"),
    (lambda hub, digest: ack_by(hub, digest, "hub", by_hub=True), "wanted control"),
    (lambda hub, digest: ack_by(hub, digest, "control", by_hub=False), "0 of the 1 signatures"),
    (of_another_boot, "acknowledgement by control of ping"),
    (lambda hub, _: control_ack(hub, "ab" * 32), "of ping abababababab"),
)
CONTROL_ALONE = {"authority": "control", "budget_mins": "0.025"}


def down_by(hub: HostileHub, path: str, digest: str) -> HealthPingAnswer:
    down = AuthorityDown(digest, "control", datetime.now(UTC))
    return HealthPingAnswer(None, "live", sign_as_node(down, hub.credentials(path)))


FORGED_DOWNS: tuple[tuple[Any, str], ...] = (
    (lambda hub, digest: down_by(hub, OTHER_HUB, digest), "instead of"),
    (lambda hub, digest: down_by(hub, DEVICE.path, digest), "is for store"),
    (lambda hub, _: down_by(hub, HUB.path, "ab" * 32), "is about ping abababababab"),
)


def in_turn(forgeries: tuple[tuple[Any, str], ...]) -> Any:
    """One forgery for each ping, over and over."""
    turn = itertools.cycle(forge for forge, _ in forgeries)

    def forge(hub: HostileHub, digest: str) -> HealthPingAnswer:
        answer: HealthPingAnswer = next(turn)(hub, digest)
        return answer

    return forge


@pytest.mark.parametrize("stage", [CONTROL_ALONE], indirect=True)
@pytest.mark.parametrize(
    ("subject", "forgeries"), [("health-ack", FORGED_ACKS), ("authority-down", FORGED_DOWNS)], ids=["ack", "down"]
)
async def test_forged_health(stage: Stage, subject: str, forgeries: tuple[tuple[Any, str], ...]) -> None:
    """Where control is the authority, nothing but its word about this very ping proves health, and nothing but this
    device's own hub's about it excuses a failure: the trial rolls back and the release is blamed.
    """
    hub = stage.hub
    old = stage.victim.standing()
    hub.forge_in_trial = in_turn(forgeries)
    hub.order()
    await hub.until(lambda: ("ROLLED_BACK", "health-authority", 1) in hub.words())
    await hub.until(lambda: {(subject, "signature"), (subject, "health-authority")} <= set(hub.told()))
    refused = [line for line in stage.victim.log() if f"refused {subject}: " in line]
    assert [why for _, why in forgeries if not any(why in line for line in refused)] == []
    assert "the answer does not verify" in hub.outcomes()[-1].evidence
    environment = stage.victim.directory.environment()
    assert (environment.active.slot.value, environment.trial) == ("A", None)
    assert stage.victim.standing().files["slots/A.img"] == old.files["slots/A.img"]
    hub.forge_in_trial = None
    await stage.next_wave("143")


@pytest.mark.parametrize("stage", [CONTROL_ALONE], indirect=True)
async def test_forged_health_before_arm(stage: Stage) -> None:
    """With the authority out of reach nothing is ARMed, whatever a hub signs in its place."""
    hub = stage.hub
    hub.forge_answers = in_turn(FORGED_ACKS[:3] + FORGED_ACKS[4:] + FORGED_DOWNS)
    hub.order()
    await hub.until_state(UpdateState.VERIFIED)
    count = len(hub.pings)
    await hub.until(lambda: len(hub.pings) > count + 5)
    assert hub.statuses[-1].state is UpdateState.VERIFIED
    assert {("health-ack", "signature"), ("health-ack", "health-authority")} <= set(hub.told())
    assert stage.victim.directory.environment().trial is None
    hub.forge_answers = None
    await stage.updates()
