"""The store hub's scenarios: with what each begins, its plot, and when it is over."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from tests.crashpoints.fleet import HUB, NEW, NEWEST, Served
from tests.crashpoints.hub_fleet import DEVICES, SHORT_LIVED, the_hub_fleet
from tests.crashpoints.hub_oracle import told_of_rot
from tests.crashpoints.hub_story import Act, HubStanding, HubStory
from tests.crashpoints.hub_world import Child, Parent, World
from tests.crashpoints.storehub_cast import StoreHub
from wavemesh.codec.statements import decode
from wavemesh.trust.statements import IntentKind, IntentReport, OperatorIntent, Pause, WaveState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.crashpoints.hub_story import Stage
    from tests.crashpoints.medium import Image, Persists

CONFIG = """\
listen = "127.0.0.1:0"
parent = "super.invalid:1"
scrub_interval_s = 600.0
fetch_retry_min_s = 30.0
lease_s = 300.0
scheduling_interval_s = 60.0
status_interval_s = 60.0
hub_status_interval_s = 3600.0
telemetry = {enabled = false}
"""
WAVE = "142"


def files_of(node: str, config: str) -> Image:
    """A hub's directory before its first start."""
    fleet = the_hub_fleet()
    image: Image = {"config.toml": config.encode(), "identity": None, "trust": None}
    image |= {f"identity/{name}": content for name, content in fleet.files[node].items()}
    return image | {"trust/root.json": fleet.base.keys.pinned_root}


def trust() -> list[Served]:
    """What control serves first."""
    return [Served("tuf", "metadata", the_hub_fleet().base.metadata), the_hub_fleet().holds(1)]


def serve(*served: Served) -> Callable[[World], World]:
    """Control wants these."""
    return lambda world: replace(world, parent=world.parent.serving(*served, audience=HUB.path))


def take_back(*types: str) -> Callable[[World], World]:
    """Control wants nothing of these types any more."""
    return lambda world: replace(world, parent=world.parent.without(*types))


def all_are(state: str) -> Callable[[World], bool]:
    """Whether all devices are in that state."""
    return lambda world: all(child.state == state for child in world.children)


@dataclass(frozen=True, slots=True)
class Scenario:
    """``begin`` makes the first standing; ``needed`` are the blobs that are held at rest, by SHA-256, and
    ``incarnations`` how many the parent has met by then.
    """

    name: str
    begin: Callable[[], HubStanding]
    acts: Sequence[Act]
    is_over: Callable[[World], bool] = lambda _: True
    needed: tuple[str, ...] = ()
    incarnations: int = 1
    generations: dict[str, int] = field(default_factory=dict)
    hold_epoch: int = 1


def fresh(*scripts: tuple[str, ...], **notes: Any) -> HubStanding:
    """A new hub; a device for each script."""
    children = tuple(Child(node.path, script=script) for node, script in zip(DEVICES, scripts, strict=False))
    notes = {"incarnations": (), "permits": (WAVE, NEW, DEVICES[: len(scripts)]), "versions": {WAVE: NEW}, **notes}
    world = World(Parent(), children, notes=tuple(notes.items()))
    return HubStanding(files_of(HUB.path, CONFIG), world)


def _order_acts(version: str, count: int) -> list[Act]:
    return [
        Act(
            "control publishes trust and an order",
            serve(*trust(), *the_hub_fleet().order(WAVE, version, DEVICES[:count])),
        ),
    ]


def _closing() -> list[Act]:
    return [
        Act("control closes the wave", serve(the_hub_fleet().closed(WAVE)), all_are("DONE")),
        Act("control takes order and permits back", take_back("order", "permit", "policy")),
    ]


@cache
def wave() -> Scenario:
    """A wave from a hub's first start to its closing: prefetch, leases, outcomes, two attempts of one device."""
    return Scenario(
        "store-wave",
        lambda: fresh(("INCONCLUSIVE", "UPDATED"), ("ROLLED_BACK",)),
        [*_order_acts(NEW, 2), *_closing()],
        all_are("IDLE"),
        needed=blobs_of(NEW),
    )


def blobs_of(version: str) -> tuple[str, ...]:
    """What devices fetch of a release, by SHA-256."""
    release = the_hub_fleet().base.releases[version]
    return tuple(one.digest.sha256 for one in (release.config, release.firmware) if one is not None)


def ask(name: str, kind: IntentKind, number: int, **fields: Any) -> Callable[[World], World]:
    """An operator wants this."""
    envelope = the_hub_fleet().intent(number, kind, **fields)
    return lambda world: replace(world, asked=(*world.asked, (name, envelope)))


def answered(name: str) -> Callable[[World], bool]:
    """Whether the hub took an operator's word."""
    return lambda world: name in world.answered


def wan(*, is_up: bool) -> Callable[[World], World]:
    """The super hub can be reached, or not."""
    return lambda world: replace(world, parent=replace(world.parent, is_reachable=is_up))


def one_is(state: str) -> Callable[[World], bool]:
    """Whether some device is in that state."""
    return lambda world: any(child.state == state for child in world.children)


def _heard(count: int, kind: str) -> Callable[[World], bool]:
    return lambda world: sum(one[2] == kind for one in world.parent.heard) >= count


def _heard_intent(number: int) -> Callable[[World], bool]:
    def is_heard(world: World) -> bool:
        intents = [
            decode(IntentReport, body).intent.payload for _, _, kind, body in world.parent.heard if kind == "intent"
        ]
        return any(decode(OperatorIntent, one).intent_id == f"{number:032x}" for one in intents)

    return is_heard


def _carrying_the_pause() -> list[Served]:
    pauses = (Pause("operator:alice", "because"),)
    return the_hub_fleet().order(WAVE, NEW, DEVICES[:2], generation=2, state=WaveState.PAUSED, pauses=pauses)


@cache
def operators() -> Scenario:
    """The WAN is dark: a pause, a prefetch, a rollback, a start that is taken back; then control hears it all."""
    cancel = the_hub_fleet().cancellation(4)
    yaml = the_hub_fleet().policy_text(NEW).encode()
    return Scenario(
        "store-operators",
        lambda: fresh(("UPDATED",), ("UPDATED",)),
        [
            *_order_acts(NEW, 2),
            Act("the WAN goes", wan(is_up=False), one_is("ARMED")),
            Act("a prefetch is asked for", ask("prefetch", IntentKind.PREFETCH, 1, policy_yaml=yaml)),
            Act("a pause is asked for", ask("pause", IntentKind.PAUSE_WAVE, 2, wave_id=WAVE), answered("prefetch")),
            Act(
                "a rollback is asked for",
                ask("rollback", IntentKind.ROLLBACK_DEVICE, 3, wave_id=WAVE, device=DEVICES[0].name),
                lambda world: "pause" in world.answered and world.child(DEVICES[0].path).state == "DONE",
            ),
            Act("a start is asked for", ask("start", IntentKind.START_WAVE, 4, wave_id="143"), answered("rollback")),
            Act(
                "it is taken back",
                lambda world: replace(world, asked=(*world.asked, ("cancel", cancel))),
                answered("start"),
            ),
            Act(
                "the WAN returns",
                wan(is_up=True),
                lambda world: "cancel" in world.answered and len(world.child(DEVICES[0].path).got) > 0,
            ),
            Act("control carries the pause", serve(*_carrying_the_pause()), _heard_intent(2)),
            Act("a resume is asked for", ask("resume", IntentKind.RESUME_WAVE, 5, wave_id=WAVE)),
            Act(
                "control lifts the pause",
                serve(*the_hub_fleet().order(WAVE, NEW, DEVICES[:2], generation=3)),
                _heard_intent(5),
            ),
            *_closing(),
        ],
        all_are("IDLE"),
        needed=blobs_of(NEW),
        generations={WAVE: 3},
    )


def rot(stage: Stage) -> None:
    """A sector of the image goes bad on the medium."""
    sha256 = blobs_of(NEW)[1]
    [path] = (stage.directory / "state/cache/blobs").glob(f"*/{sha256}-*")
    content = path.read_bytes()
    content = content[:5000] + bytes(100) + content[5100:]
    with path.open("r+b") as file:
        file.write(content)
    node = stage.disk.medium.file(path)
    node.present = node.durable = content


@cache
def cached() -> Scenario:
    """A prefetch that is resumed, evicted for a wave's blobs, one of which rots, is found, and is fetched again."""
    yaml = the_hub_fleet().policy_text(NEWEST).encode()
    return Scenario(
        "store-cached",
        lambda: fresh(("UPDATED",), ("UPDATED",), falls=("",)),
        [
            Act("control publishes trust", serve(*trust())),
            Act(
                "a prefetch is asked for",
                ask("prefetch", IntentKind.PREFETCH, 1, policy_yaml=yaml),
                lambda world: bool(world.parent.taken),
            ),
            Act("control orders a wave", serve(*the_hub_fleet().order(WAVE, NEW, DEVICES[:1])), _is_sent),
            Act("a sector rots", rotten, one_is("LEASED"), rot),
            Act("it is fetched again", lambda world: world.noting("spoilt", None), is_mended),
            Act("another device is ordered", serve(*the_hub_fleet().order(WAVE, NEW, DEVICES[:2], generation=2))),
            *_closing(),
        ],
        all_are("IDLE"),
        needed=blobs_of(NEW),
        generations={WAVE: 2},
    )


def _is_sent(world: World) -> bool:
    return set(blobs_of(NEWEST)) <= set(world.note("sent") or ())


def rotten(world: World) -> World:
    """From now on the oracle knows what went bad."""
    sha256 = blobs_of(NEW)[1]
    return world.noting("spoilt", sha256).noting("rot", sha256)


def is_mended(world: World) -> bool:
    """Whether control was told that it was found, and that it is healed."""
    told = told_of_rot([(kind, body) for _, _, kind, body in world.parent.heard], blobs_of(NEW)[1])
    return told["cache-mismatch"] > 0 and told["cache-healed"] > 0


@cache
def trusting() -> Scenario:
    """Trust, holds, revocations and orders grow, older ones are played again, the hub's certificate is renewed."""
    fleet = the_hub_fleet()
    later = fleet.order(WAVE, NEW, DEVICES[:1], generation=2, state=WaveState.PLANNED)

    def all_taken(world: World) -> bool:
        return {one.key for one in world.parent.wanted} <= {key for key, _ in world.parent.taken}

    return Scenario(
        "store-trusting",
        lambda: replace(fresh(("UPDATED",), ("UPDATED",)), image=files_of(SHORT_LIVED, CONFIG)),
        [
            Act(
                "an order comes before its trust", serve(*fleet.order(WAVE, NEW, DEVICES[:1], state=WaveState.PLANNED))
            ),
            Act("control publishes trust", serve(fleet.metadata(NEW), fleet.holds(1)), all_taken),
            Act("another release", serve(Served("tuf", "metadata", fleet.base.metadata)), all_taken),
            Act(
                "a hold, and a certificate taken back",
                serve(fleet.holds(2, "x"), fleet.revocations(1, DEVICES[1])),
                all_taken,
            ),
            Act("a later order", serve(*later), all_taken),
            Act("older words are played again", serve(fleet.holds(1), *fleet.order(WAVE, NEW, DEVICES[:1])), all_taken),
            Act("control wants none of it", take_back("revocations", "holds", "order"), _heard(2, "event")),
            Act("older words are played once more", serve(fleet.holds(1), *fleet.order(WAVE, NEW, DEVICES[:1]))),
            Act("the certificate is renewed", lambda world: world, lambda world: bool(world.note("renewals"))),
        ],
        generations={WAVE: 2},
        hold_epoch=2,
    )


def _midway() -> tuple[HubStanding, Image]:
    """A wave that has gone on, and a copy of the hub's disk from before."""
    scenario = wave()
    copies: list[Image] = []

    def look(step: str, when: str, cut: Callable[[Persists], HubStanding], *, is_pending: bool) -> None:
        del step, is_pending
        standing = cut(lambda: False)
        if not copies and when == "after" and standing.world.children[0].state == "ARMED":
            copies.append(standing.image)

    def has_gone_on(world: World) -> bool:
        return world.children[1].state == "ARMED" and world.children[0].acknowledged > 0

    stage = HubStory(StoreHub(), scenario.acts[:1], has_gone_on, scenario.begin(), look)
    return stage.tell(), copies[0]


@cache
def restored() -> Scenario:
    """A wave goes on after the hub's disk was restored from a copy made before its devices said something."""

    def begin() -> HubStanding:
        standing, copy = _midway()
        return replace(standing, image=copy, world=_after_loss(standing.world))

    return Scenario("store-restored", begin, [_the_other_is_back(), *_closing()], all_are("IDLE"), incarnations=2)


@cache
def replaced() -> Scenario:
    """A wave goes on after the hub was replaced by one with an empty disk."""

    def begin() -> HubStanding:
        standing, _ = _midway()
        return replace(standing, image=files_of(HUB.path, CONFIG), world=_after_loss(standing.world))

    return Scenario("store-replaced", begin, [_the_other_is_back(), *_closing()], all_are("IDLE"), incarnations=2)


def _the_other_is_back() -> Act:
    """A device that was inside a swap returns once the hub has its new permits."""
    path = DEVICES[1].path

    def has_permits(world: World) -> bool:
        return len(world.note("incarnations")) > 1 and sum(key.type == "permit" for key, _ in world.parent.taken) > 1

    return Act("it is back", lambda world: world.with_child(replace(world.child(path), is_online=True)), has_permits)


def _after_loss(world: World) -> World:
    """One device is inside a swap and cannot be heard. The leases of before are in no slot, numbers of before are lost,
    and what control said it says again.
    """
    leases = tuple(child.lease_id for child in world.children if child.lease_id)
    lost = (*(child.incarnation for child in world.children), *(one for one, _ in world.parent.cursors))
    inside = next(child for child in world.children if child.state == "ARMED")
    world = replace(world, done=0, parent=replace(world.parent, taken=()))
    world = world.with_child(replace(inside, is_online=False))
    return world.noting("restored", leases).noting("lost", lost)


SCENARIOS = (wave, operators, cached, trusting, restored, replaced)
