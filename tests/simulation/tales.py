"""Tales: nights in which one story is certain to happen, among the twenty faults that are drawn as in any other.

Chance brings some stories too seldom to be waited for: a control that nobody reaches *while* a super hub loses its
disk, a store that is dark for so long that its view of holds grows old. A tale tells one of them in every night, at
times drawn from the night's own seed. ``run_seed(seed, tale=NAME)``; a night with a tale must hold like any other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from device.gates.findings import bad
from tests.simulation.facts import GOOD
from tests.simulation.region import HOUR_S, Region
from wavemesh.policy.document import HealthAuthority
from wavemesh.trust.statements import UpdateState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.faults import Chaos
    from tests.simulation.links import Link

    Tale = Callable[[Region, Chaos], None]

TALES: dict[str, Tale] = {}
LOOK_S = 2.0
LAST_MINUTE_S = 60.0
_IN_SWAP = frozenset({UpdateState.ARMED, UpdateState.TRIAL, UpdateState.COMMITTING, UpdateState.ROLLING_BACK})


def tale(name: str) -> Callable[[Tale], Tale]:
    """Register a tale by its name."""

    def add(told: Tale) -> Tale:
        TALES[name] = told
        return told

    return add


def _begun(region: Region) -> float:
    """When the first wave is planned."""
    return region.plan.waves[0][0]


def _is_long(region: Region) -> None:
    """One wave over everybody, two at a time, and of a good release: it would be over before the story is told."""
    region.plan.waves = ((_begun(region), "new", 100),)
    guardrails = replace(region.policy.guardrails, max_concurrent_swaps=2, availability=())
    region.policy = replace(region.policy, guardrails=guardrails)
    _is_good(region)


def _is_good(region: Region) -> None:
    """The release is a good one, or the wave would halt before the story is told."""
    for one in region.releases.values():
        if one.firmware is not None:
            region.facts.qualities[one.firmware.digest.sha256] = GOOD


def _keep_cut(region: Region, link: Link, begin: float, end: float) -> None:
    """Cut a link, and cut it again when another fault is over and heals it."""

    def cut() -> None:
        if region.world.now >= end:
            link.heal()
            return
        if not link.is_cut:
            link.cut()
        region.world.after(20.0, cut)

    region.world.at(begin, cut)


@tale("dark-beyond-the-holds")
def _(region: Region, _chaos: Chaos) -> None:
    """A store goes dark with its permits, and some tills come to their turn when its view of holds has grown old."""
    _is_good(region)
    policy = region.policy
    region.policy = replace(
        policy,
        targets=replace(policy.targets, permit_batch=None),
        guardrails=replace(policy.guardrails, hold_max_age_hours=5.5),
        verification=replace(policy.verification, health_authority=HealthAuthority.HUB),
    )
    store, begun = region.stores[0], _begun(region)
    _keep_cut(region, store.parent_link, begun + 240.0, 7.9 * HOUR_S)
    late = [device for device in region.devices if device.link.parent is store][-15:]

    def low() -> None:
        for device in late:
            device.gates.closed = bad("battery", "5 %", "5 %", "30 %")
        if region.world.now < 6 * HOUR_S:
            region.world.after(600.0, low)
        else:
            for device in late:
                device.gates.closed = None

    region.world.at(30.0, low)


@tale("armed-in-the-last-minute")
def _(region: Region, _chaos: Chaos) -> None:
    """The first tills with a lease may reboot in its last minute only, and are not heard from then on for a while."""
    _is_long(region)
    policy = region.policy
    region.policy = replace(
        policy,
        guardrails=replace(policy.guardrails, halt_rollback_ratio=1.0),
        verification=replace(policy.verification, health_authority=HealthAuthority.EITHER),
    )
    store, world = region.stores[0], region.world
    first: set[str] = set()
    gone: set[str] = set()

    def look() -> None:
        here = [device for device in region.devices if device.link.parent is store and device.path not in gone]
        for device in here:
            wave_id = device.progress.wave_id if device.is_up else ""
            grant = device.equipment.sink.grant(wave_id) if wave_id else None
            left_s = (grant.lease.expires_at - device.clock.now()).total_seconds() if grant is not None else 0.0
            if grant is not None and not gone:
                first.add(device.path)
            if device.path in first and device.is_up and device.progress.state in _IN_SWAP:
                gone.add(device.path)
                _keep_cut(region, device.link, world.now, world.now + 900.0)
            waits = not gone if device.path not in first else not 0.0 < left_s < LAST_MINUTE_S
            device.gates.inhibition = bad("inhibited", "payment open", "open", "closed") if waits else None
        if world.now < _begun(region) + HOUR_S and (not gone or first - gone):
            world.after(LOOK_S, look)
        else:
            for device in region.devices:
                device.gates.inhibition = None

    world.at(_begun(region), look)


@tale("older-disk-above")
def _(region: Region, _chaos: Chaos) -> None:
    """A wave is halted; then its super hub goes on from a disk of before, and cannot reach control."""
    _is_long(region)
    world, above, control = region.world, region.super_hubs[0], region.control
    begun = _begun(region) + world.rng("tale").uniform(300.0, 900.0)
    backup: list[bytes] = []
    region.facts.forgetful.add(above.path)

    def back() -> None:
        above.stop(is_silent=False, back_after_s=None)
        above.disk.restore(backup[0])
        above.later(5.0, above.start)

    world.at(begun, lambda: backup.append(above.disk.copy()))
    world.at(begun + 60.0, lambda: control.do(control.halt, "w1", "the tale says so"))
    _keep_cut(region, above.parent_link, begun + 120.0, begun + HOUR_S)
    world.at(begun + 130.0, back)


@tale("lost-behind-a-partition")
def _(region: Region, _chaos: Chaos) -> None:
    """Control cannot be reached while a wave goes on; then the super hub loses its disk, and the store hub restarts."""
    _is_good(region)
    region.policy = replace(
        region.policy,
        targets=replace(region.policy.targets, permit_batch=None),
        verification=replace(region.policy.verification, health_authority=HealthAuthority.HUB),
    )
    world, store, above = region.world, region.stores[0], region.super_hubs[0]
    begun = _begun(region)
    _keep_cut(region, above.parent_link, begun + 240.0, begun + 2 * HOUR_S)
    region.facts.forgetful.add(above.path)

    def lose() -> None:
        above.stop(is_silent=False, back_after_s=None)
        above.disk.lose()
        above.later(30.0, above.start)

    at = begun + world.rng("tale").uniform(0.5, 1.8) * HOUR_S
    world.at(at - 20.0, lambda: store.stop(is_silent=False))
    world.at(at, lose)


@tale("hub-lost-in-the-dark")
def _(region: Region, chaos: Chaos) -> None:
    """A store is dark while its wave goes on; then its hub is replaced by one with an empty disk."""
    _is_good(region)
    region.policy = replace(
        region.policy,
        targets=replace(region.policy.targets, permit_batch=None),
        verification=replace(region.policy.verification, health_authority=HealthAuthority.HUB),
    )
    world, store = region.world, region.stores[0]
    begun = _begun(region)
    _keep_cut(region, store.parent_link, begun + 240.0, begun + 2 * HOUR_S)
    world.at(begun + world.rng("tale").uniform(0.3, 1.8) * HOUR_S, chaos._replace, store)


@tale("hub-that-crashes")
def _(region: Region, _chaos: Chaos) -> None:
    """A store hub dies again and again, at one of its next effects, while its devices tell what became of them."""
    _is_long(region)
    world, store, rng = region.world, region.stores[0], region.world.rng("tale")
    end = _begun(region) + 2 * HOUR_S

    def crash() -> None:
        if store.is_up and store.crash_in is None:
            store.crash_in = rng.randrange(40)
        if world.now < end:
            world.after(rng.uniform(20.0, 60.0), crash)

    world.at(_begun(region) + 240.0, crash)


@tale("closed-in-the-middle")
def _(region: Region, _chaos: Chaos) -> None:
    """All of a store's tills are switched off while some of them are inside a swap, and on again hours later."""
    _is_good(region)
    world, store, rng = region.world, region.stores[0], region.world.rng("tale")
    region.policy = replace(
        region.policy, guardrails=replace(region.policy.guardrails, max_concurrent_swaps=8, availability=())
    )

    def inside() -> list[Any]:
        here = [one for one in region.devices if one.link.parent is store and one.is_up]
        return [one for one in here if one.progress.state in _IN_SWAP]

    def close() -> None:
        if len(inside()) < 6:
            if world.now < _begun(region) + HOUR_S:
                world.after(LOOK_S, close)
            return
        after = rng.uniform(1.0, 3.0) * HOUR_S
        for device in [one for one in region.devices if one.link.parent is store]:
            device.power_cut(after + rng.uniform(0.0, 60.0))

    world.at(_begun(region) + 240.0, close)


@tale("power-that-flickers")
def _(region: Region, _chaos: Chaos) -> None:
    """A store's power fails for a moment again and again, while its devices are inside swaps."""
    _is_good(region)
    world, store = region.world, region.stores[0]

    def flicker() -> None:
        for device in [one for one in region.devices if one.link.parent is store and one.is_up]:
            if device.progress.state in _IN_SWAP:
                device.power_cut(2.0)
        if world.now < _begun(region) + 0.5 * HOUR_S:
            world.after(15.0, flicker)

    world.at(_begun(region) + 240.0, flicker)
