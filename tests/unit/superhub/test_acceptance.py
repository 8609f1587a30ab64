"""What a super hub believes of control: each type by its rule, refused by gate."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from superhub.acceptance import Acceptance
from tests.conftest import FLEET, CredentialsFactory, TrustKeys, make_manifest
from tests.session_kit import resource
from wavemesh.codec.statements import encode
from wavemesh.errors import GateError
from wavemesh.identity.authorities import Authorities
from wavemesh.policy.document import POLICY_PAYLOAD_TYPE, policy_digest
from wavemesh.session.frames import Resource, ResourceKey
from wavemesh.trust.envelope import sign_as_node, sign_statement, sign_with_keys
from wavemesh.trust.statements import (
    Hold,
    HoldList,
    IntentKind,
    OperatorIntent,
    Permit,
    WaveClosed,
    WaveOrder,
    WaveState,
)

if TYPE_CHECKING:
    from wavemesh.identity.ca import FleetCa

NOW = datetime.now(UTC)
REGION = "region/midwest"
STORE = f"{REGION}/store/store-208"


@pytest.fixture
def acceptance(fleet_ca: FleetCa, trust_keys: TrustKeys) -> Acceptance:
    """With trust metadata of one release."""
    made = Acceptance(REGION, trust_keys.pinned_root, Authorities([fleet_ca.certificate]))
    made.accept(trust(trust_keys), NOW)
    return made


def trust(keys: TrustKeys, *names: str) -> Resource:
    published, _ = keys.publish(*(make_manifest(name) for name in names or ("firmware-1",)), now=NOW)
    return resource("metadata", encode(published), kind="tuf")


def signed(keys: TrustKeys, name: str, kind: str, statement: Any) -> Resource:
    return resource(name, encode(sign_statement(statement, [keys.control])), kind=kind)


def order(generation: int = 1, **changes: Any) -> WaveOrder:
    fields: dict[str, Any] = {
        "wave_id": "142",
        "generation": generation,
        "state": WaveState.RUNNING,
        "cohort": "c",
        "device_class": "pos-tablet",
        "hardware_revision": "r2",
        "store": STORE,
        "devices": ("pos-01",),
        "release": "firmware-1",
        "policy_digest": "0" * 64,
        "least_hold_epoch": 0,
        "issued_at": NOW,
        "expires_at": NOW + timedelta(hours=1),
    }
    return WaveOrder(**{**fields, **changes})


def permit(generation: int = 1, device: str = f"{STORE}/device/pos-01") -> Permit:
    return Permit("142", device, 3, generation, None, NOW, NOW + timedelta(hours=1), "i" * 32)


def refused(gate: str, match: str | None = None) -> Any:
    return pytest.raises(GateError, match=match, check=lambda error: error.gate == gate)


def test_what_control_signs_is_believed(acceptance: Acceptance, trust_keys: TrustKeys) -> None:
    acceptance.accept(signed(trust_keys, "142/store-208", "order", order()), NOW)
    acceptance.accept(signed(trust_keys, "142/store-208/pos-01", "permit", permit()), NOW)
    acceptance.accept(signed(trust_keys, "142", "closed", WaveClosed("142", WaveState.CLOSED, NOW)), NOW)
    acceptance.accept(signed(trust_keys, "fleet", "holds", HoldList(3, (Hold("f", "", "r"),), NOW)), NOW)
    assert acceptance.orders_of(STORE) == list(acceptance.orders()) == [order()]
    assert acceptance.orders_of(f"{REGION}/store/store-209") == []
    assert acceptance.holds is not None
    assert acceptance.holds.epoch == 3
    assert acceptance.trusted is not None
    assert list(acceptance.trusted.releases()) == ["firmware-1"]
    acceptance.forget(ResourceKey("order", "142/store-208"))
    assert acceptance.orders_of(STORE) == []


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (("order", "142/store-209", order()), "came under the name"),
        (("order", "142/store-208", order(store="region/north/store/store-208")), "not for region/midwest"),
        (("order", "142/midwest", order(store=REGION)), "not for region/midwest"),
        (("permit", "142/store-208/pos-02", permit()), "came under the name"),
        (("permit", "142/store-208/pos-01", permit(device="region/north/store/s/device/pos-01")), "not for"),
        (("closed", "143", WaveClosed("142", WaveState.CLOSED, NOW)), "came under the name"),
        (("holds", "fleet", WaveClosed("142", WaveState.CLOSED, NOW)), "is not the"),
        (("gossip", "x", WaveClosed("142", WaveState.CLOSED, NOW)), "not known here"),
        (("policy", "x", WaveClosed("142", WaveState.CLOSED, NOW)), "is not the"),
    ],
)
def test_content_must_be_what_the_name_says(
    acceptance: Acceptance, trust_keys: TrustKeys, wrong: tuple[str, str, Any], match: str
) -> None:
    kind, name, statement = wrong
    with refused("signature", match):
        acceptance.accept(signed(trust_keys, name, kind, statement), NOW)


def test_only_control_speaks_for_control(acceptance: Acceptance, trust_keys: TrustKeys) -> None:
    for signer in (trust_keys.online, trust_keys.root, *trust_keys.releases):
        forged = resource("142/store-208", encode(sign_statement(order(), [signer])), kind="order")
        with refused("signature", "of the 1 signatures needed"):
            acceptance.accept(forged, NOW)
    with refused("signature", "order '142/store-208'"):
        acceptance.accept(resource("142/store-208", b"\xff", kind="order"), NOW)
    assert acceptance.orders_of(STORE) == []


def test_nothing_goes_back(acceptance: Acceptance, trust_keys: TrustKeys) -> None:
    """Replays of older orders, permits, hold lists and metadata are refused; the same again is not."""
    acceptance.accept(trust(trust_keys, "firmware-1", "firmware-2"), NOW)
    newest = [
        signed(trust_keys, "142/store-208", "order", order(2)),
        signed(trust_keys, "142/store-208/pos-01", "permit", permit(2)),
        signed(trust_keys, "fleet", "holds", HoldList(3, (), NOW)),
    ]
    for one in (*newest, *newest):
        acceptance.accept(one, NOW)
    older = [
        signed(trust_keys, "142/store-208", "order", order(1)),
        signed(trust_keys, "142/store-208", "order", order(2, issued_at=NOW - timedelta(seconds=1))),
        signed(trust_keys, "142/store-208/pos-01", "permit", permit(1)),
        signed(trust_keys, "fleet", "holds", HoldList(2, (), NOW)),
        trust(trust_keys, "firmware-1"),
    ]
    for one in older:
        with refused("replay"):
            acceptance.accept(one, NOW)


def test_a_wave_that_is_over_stays_over(acceptance: Acceptance, trust_keys: TrustKeys) -> None:
    """P6: control restored from a backup may come to higher numbers before it hears of the halt that it forgot."""

    def offer(generation: int, state: WaveState) -> None:
        acceptance.accept(signed(trust_keys, "142/store-208", "order", order(generation, state=state)), NOW)

    offer(2, WaveState.HALTED)
    offer(3, WaveState.HALTED)
    for state in (WaveState.RUNNING, WaveState.PAUSED, WaveState.PLANNED):
        with refused("replay", "halted for ever"):
            offer(9, state)
    closed = signed(trust_keys, "142", "closed", WaveClosed("142", WaveState.HALTED, NOW))
    acceptance.accept(closed, NOW)
    acceptance.forget(ResourceKey("order", "142/store-208"))
    with refused("replay", "closed for ever"):
        offer(9, WaveState.HALTED)
    acceptance.forget(closed.key)
    offer(9, WaveState.RUNNING)


def test_nothing_is_believed_without_trust_metadata(fleet_ca: FleetCa, trust_keys: TrustKeys) -> None:
    bare = Acceptance(REGION, trust_keys.pinned_root, Authorities([fleet_ca.certificate]))
    with refused("signature", "before any trust metadata"):
        bare.accept(signed(trust_keys, "142/store-208", "order", order()), NOW)


def test_intents_are_the_operators_own(acceptance: Acceptance, credentials: CredentialsFactory) -> None:
    intent = OperatorIntent("i-1", IntentKind.PAUSE_WAVE, NOW, wave_id="142", reason="r")
    alice, hub = credentials("operator/alice"), credentials(STORE)
    good = resource("i-1", encode(sign_as_node(intent, alice)), kind="intent")
    acceptance.accept(good, NOW)
    with refused("signature", "came under the name"):
        acceptance.accept(replace(good, key=ResourceKey("intent", "i-2")), NOW)
    with refused("signature", "is for operator to sign"):
        acceptance.accept(resource("i-1", encode(sign_as_node(intent, hub)), kind="intent"), NOW)
    assert alice.node_id.fleet == FLEET


def test_a_policy_is_named_by_its_digest(acceptance: Acceptance, trust_keys: TrustKeys) -> None:
    for payload, match in ((b"{}", "policy"), (b"not json", "policy")):
        envelope = sign_with_keys(POLICY_PAYLOAD_TYPE, payload, [trust_keys.control])
        with refused("signature", match):
            acceptance.accept(resource(policy_digest(payload), encode(envelope), kind="policy"), NOW)


def test_after_a_restart_what_was_durable_is_believed_again(fleet_ca: FleetCa, trust_keys: TrustKeys) -> None:
    """Expired metadata still has the keys; what does not verify any more is told, to be asked for anew."""
    durable = [
        signed(trust_keys, "142/store-208", "order", order(2)),
        signed(trust_keys, "fleet", "holds", HoldList(3, (), NOW)),
        trust(trust_keys),
        resource("143/store-208", b"rotten", kind="order"),
    ]
    restarted = Acceptance(REGION, trust_keys.pinned_root, Authorities([fleet_ca.certificate]))
    assert restarted.restore(durable) == [ResourceKey("order", "143/store-208")]
    assert [one.generation for one in restarted.orders_of(STORE)] == [2]
    with refused("replay"):
        restarted.accept(signed(trust_keys, "142/store-208", "order", order(1)), NOW)
    bare = Acceptance(REGION, trust_keys.pinned_root, Authorities([fleet_ca.certificate]))
    assert bare.restore(durable[:1]) == [ResourceKey("order", "142/store-208")]
