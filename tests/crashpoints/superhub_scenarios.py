"""The super hub's scenarios: with what each begins, its plot, and when it is over."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric import ec

from tests.conftest import FLEET
from tests.crashpoints.fleet import BEGAN_AT, HUB, NEW, NEWEST, Served
from tests.crashpoints.hub_fleet import DEVICES, OTHER_STORE, SUPER_HUB, the_hub_fleet
from tests.crashpoints.hub_story import Act, HubStanding, HubStory
from tests.crashpoints.hub_world import Child, Parent, World
from tests.crashpoints.storehub_scenarios import WAVE, Scenario, files_of, is_mended, rot, rotten, trust
from tests.crashpoints.superhub_cast import RegionHub
from wavemesh.codec.statements import encode
from wavemesh.identity.csr import make_request
from wavemesh.session.frames import Report
from wavemesh.trust.enrolments import Enrolment, JoinRequest, RenewalRequest
from wavemesh.trust.envelope import sign_as_node
from wavemesh.trust.statements import (
    DeviceOutcome,
    EventReport,
    IntentKind,
    IntentReport,
    OutcomeKind,
    OutcomeReport,
    SnapshotReport,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.crashpoints.medium import Image, Persists
    from wavemesh.identity.nodes import NodeId
    from wavemesh.trust.statements import Digest, Envelope

CONFIG = """\
listen = "127.0.0.1:0"
scrub_interval_s = 600.0
telemetry = {enabled = false}
[control]
address = "control.invalid:1"
name = "main"
[origin]
url = "file:///origin"
[compliance]
max_age_days = 30.0
"""
SECRET = b"s" * 32


def serve(*served: Served) -> Callable[[World], World]:
    """Control wants these."""
    return lambda world: replace(world, parent=world.parent.serving(*served, audience=SUPER_HUB.path))


def fresh(**notes: Any) -> HubStanding:
    """A new super hub with two stores, and its authority's key."""
    children = (Child(HUB.path), Child(OTHER_STORE.path))
    image = files_of(SUPER_HUB.path, CONFIG) | {"authority": None}
    image |= {f"authority/{name}": content for name, content in the_hub_fleet().authority.items()}
    return HubStanding(image, World(Parent(), children, notes=tuple(notes.items())))


@cache
def outcome(device: NodeId, attempt: int, sequence: int, kind: OutcomeKind, wave_id: str = WAVE) -> Envelope:
    """A device's word."""
    gate = "" if kind is OutcomeKind.UPDATED else "boot-probe"
    said = DeviceOutcome(wave_id, device.path, attempt, sequence, kind, gate, "", "b", "B", "", "", "", BEGAN_AT)
    return sign_as_node(said, the_hub_fleet().nodes[device.path])


def says(node: NodeId, *reports: Report) -> Callable[[World], World]:
    """A store has these to report."""

    def become(world: World) -> World:
        child = world.child(node.path)
        return world.with_child(replace(child, reports=(*child.reports, *reports)))

    return become


def outcomes(*envelopes: Envelope) -> Report:
    """A report of them."""
    return Report("outcome", encode(OutcomeReport(envelopes)))


def _event(number: int, node: NodeId) -> Report:
    event = EventReport(f"{number:032x}", node.path, "cache-mismatch", "checksum", WAVE, "x", "", BEGAN_AT)
    return Report("event", encode(event))


def _intent(number: int, *, is_cancelled: bool = False) -> Report:
    fleet = the_hub_fleet()
    intent = fleet.intent(number, IntentKind.START_WAVE, wave_id="143")
    return Report(
        "intent", encode(IntentReport(intent, HUB.path, fleet.cancellation(number) if is_cancelled else None))
    )


def acknowledged(world: World) -> bool:
    """Whether the hub took all that the stores have."""
    return all(child.acknowledged == len(child.reports) for child in world.children)


@cache
def rollup() -> Scenario:
    """Two stores report: outcomes that surpass one another, snapshots, an event and an intent said twice."""
    fleet = the_hub_fleet()
    first, second, third = DEVICES
    snapshot = SnapshotReport(HUB.path, "c" * 32, (outcome(third, 1, 1, OutcomeKind.ROLLED_BACK),), last=True)
    intent = _intent(1)
    return Scenario(
        "region-rollup",
        fresh,
        [
            Act("control publishes trust and an order", serve(*trust(), *fleet.order(WAVE, NEW, DEVICES))),
            Act(
                "a store reports",
                says(
                    HUB,
                    outcomes(outcome(first, 1, 1, OutcomeKind.INCONCLUSIVE)),
                    outcomes(outcome(second, 1, 1, OutcomeKind.UPDATED)),
                    _event(1, HUB),
                    intent,
                ),
            ),
            Act("the other does", says(OTHER_STORE, _event(2, OTHER_STORE)), acknowledged),
            Act("control cannot be reached", lambda world: _wan(world, is_up=False), acknowledged),
            Act("the store's snapshot", says(HUB, Report("snapshot", encode(snapshot)), _event(1, HUB), _intent(2))),
            Act("an intent is taken back", says(HUB, _intent(2, is_cancelled=True)), acknowledged),
            Act("a better word", says(HUB, outcomes(outcome(first, 2, 2, OutcomeKind.UPDATED)), intent), acknowledged),
            Act("control is back", lambda world: _wan(world, is_up=True), acknowledged),
            Act("control closes the wave", serve(fleet.closed(WAVE)), acknowledged),
        ],
        acknowledged,
    )


def _wan(world: World, *, is_up: bool) -> World:
    return replace(world, parent=replace(world.parent, is_reachable=is_up))


def digests_of(version: str) -> tuple[Digest, ...]:
    """What a store fetches of a release."""
    release = the_hub_fleet().base.releases[version]
    return tuple(one.digest for one in (release.config, release.firmware) if one is not None)


def wants(node: NodeId, *digests: Digest) -> Callable[[World], World]:
    """A store wants these blobs."""
    return lambda world: world.noting(f"fetch:{node.path}", (*(world.note(f"fetch:{node.path}") or ()), *digests))


def fetched(node: NodeId, version: str) -> Callable[[World], bool]:
    """Whether a store has had an answer for each."""
    return lambda world: {one.sha256 for one in digests_of(version)} <= set(world.child(node.path).fetched)


@cache
def seeding() -> Scenario:
    """A release enters the region over a link that falls, rots, makes room for another, and that is put on hold."""
    fleet = the_hub_fleet()
    newest = fleet.order("143", NEWEST, DEVICES[:1])
    hold = fleet.holds(2, fleet.base.releases[NEWEST].name)
    return Scenario(
        "region-seeding",
        lambda: fresh(falls=("",)),
        [
            Act("control publishes trust and an order", serve(*trust(), *fleet.order(WAVE, NEW, DEVICES[:1]))),
            Act("a store fetches", wants(HUB, *digests_of(NEW)), lambda world: bool(world.child(HUB.path).held)),
            Act("a sector rots", rotten, fetched(HUB, NEW), rot),
            Act("it is fetched again", lambda world: world.noting("spoilt", None), is_mended),
            Act("another wave", lambda world: serve(*newest)(_without_order(world)), fetched(HUB, NEW)),
            Act("it fetches that", wants(HUB, *digests_of(NEWEST)), _has_order("143")),
            Act("control holds it", serve(hold), fetched(HUB, NEWEST)),
            Act("another store wants it", wants(OTHER_STORE, *digests_of(NEWEST)), _has_hold),
        ],
        _is_refused,
        needed=tuple(one.sha256 for one in digests_of(NEWEST)),
    )


def _is_refused(world: World) -> bool:
    """By the hold, though the region has the bytes."""
    gates = {name: gate for name, gate in world.child(OTHER_STORE.path).got if name.startswith("gate")}
    return len(gates) == len(digests_of(NEWEST)) and set(gates.values()) == {b"hold"}


def _without_order(world: World) -> World:
    return replace(world, parent=world.parent.without("order"))


def _has_order(wave_id: str) -> Callable[[World], bool]:
    return lambda world: any(one.key.name == f"{wave_id}/{HUB.name}" for one in world.child(HUB.path).held)


def _has_hold(world: World) -> bool:
    held = {one.key.type: one.digest for one in world.child(OTHER_STORE.path).held}
    wanted = {one.key.type: one.digest for one in world.parent.wanted}
    return held.get("holds") == wanted["holds"]


@cache
def _csr(name: str) -> bytes:
    return make_request(ec.generate_private_key(ec.SECP256R1()), name)


def asks(node: NodeId, *wanted: tuple[str, str, bytes]) -> Callable[[World], World]:
    """A store asks for certificates."""
    return lambda world: world.noting(f"ask:{node.path}", (*(world.note(f"ask:{node.path}") or ()), *wanted))


def has_got(node: NodeId, name: str) -> Callable[[World], bool]:
    """Whether it has the answer."""
    return lambda world: name in dict(world.child(node.path).got)


@cache
def issuing() -> Scenario:
    """A device joins by a token, which nobody can use again; a store and a device renew."""
    fleet = the_hub_fleet()
    device = DEVICES[0]
    root = hashlib.sha256(fleet.base.keys.pinned_root).hexdigest()
    until = BEGAN_AT + timedelta(days=1)
    secret = hashlib.sha256(SECRET).hexdigest()
    enrolment = Enrolment(device.path, secret, root, BEGAN_AT, until, "pos-tablet", "r2")
    renewal = RenewalRequest(HUB.path, _csr(HUB.name), BEGAN_AT)
    return Scenario(
        "region-issuing",
        fresh,
        [
            Act("control enrols a device", serve(*trust(), Served("enrolment", device.path, fleet.sign(enrolment)))),
            Act(
                "it joins",
                asks(HUB, ("join", "join", encode(JoinRequest(FLEET, device.path, SECRET, _csr("own"))))),
                lambda world: any(key.type == "enrolment" for key, _ in world.parent.taken),
            ),
            Act(
                "a thief joins",
                asks(HUB, ("refused thief", "join", encode(JoinRequest(FLEET, device.path, SECRET, _csr("thief"))))),
                has_got(HUB, "join"),
            ),
            Act(
                "the answer was lost",
                asks(HUB, ("join again", "join", encode(JoinRequest(FLEET, device.path, SECRET, _csr("own"))))),
                has_got(HUB, "refused thief"),
            ),
            Act(
                "the store renews",
                asks(HUB, ("renew", "renew", encode(sign_as_node(renewal, fleet.nodes[HUB.path])))),
                has_got(HUB, "join again"),
            ),
        ],
        has_got(HUB, "renew"),
    )


def _midway() -> tuple[HubStanding, Image]:
    """A roll-up that has gone on, and a copy of the hub's disk from before the stores said anything."""
    scenario = rollup()
    copies: list[Image] = []

    def look(step: str, when: str, cut: Callable[[Persists], HubStanding], *, is_pending: bool) -> None:
        del step, is_pending
        standing = cut(lambda: False)
        if when == "after" and not any(child.acknowledged for child in standing.world.children):
            copies.append(standing.image)

    story = HubStory(RegionHub(), scenario.acts[:3], acknowledged, scenario.begin(), look)
    return story.tell(), copies[-1]


def _after_loss(world: World) -> World:
    """Numbers of before are lost; what control said it says again."""
    lost = (*(child.incarnation for child in world.children), *(one for one, _ in world.parent.cursors))
    return replace(world, done=0, parent=replace(world.parent, taken=())).noting("lost", lost).noting("used", ())


def _later() -> list[Act]:
    said = says(HUB, outcomes(outcome(DEVICES[2], 1, 1, OutcomeKind.UPDATED)))
    return [Act("a store reports", said, acknowledged)]


@cache
def restored() -> Scenario:
    """The super hub's disk was restored from a copy made before its stores said something."""

    def begin() -> HubStanding:
        standing, copy = _midway()
        return replace(standing, image=copy, world=_after_loss(standing.world))

    return Scenario("region-restored", begin, _later(), acknowledged, incarnations=2)


@cache
def replaced() -> Scenario:
    """The super hub was replaced by one with an empty disk."""

    def begin() -> HubStanding:
        standing, _ = _midway()
        return replace(standing, image=fresh().image, world=_after_loss(standing.world))

    return Scenario("region-replaced", begin, _later(), acknowledged, incarnations=2)


SCENARIOS = (rollup, seeding, issuing, restored, replaced)
