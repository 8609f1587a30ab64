"""H6 as a property: whatever happens in a store, the hub never takes down a device whose group would fall short by it.

Stores live through random nights: tills swap, die at rest and in trials, come back, owe their outcomes, get rollbacks,
and the hub forgets its sessions. Truth is what the tills do: a till is up when it has power, a session, and runs a slot
it committed. Devices may fall by themselves; the hub may not add to it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

import pytest

from storehub.swaps import (
    DeviceView,
    Group,
    HubView,
    PermitView,
    RollbackWish,
    Slot,
    SlotUse,
    Timing,
    WaveView,
    Word,
    decide,
)
from wavemesh.trust.statements import OutcomeKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2026, 3, 1, tzinfo=UTC)
LEASE_S, TRIAL_S, WATCHDOG_S = 10, 20, 10
LATER = START + timedelta(days=9)
LANE_A, LANE_B = frozenset("abc"), frozenset("cdefg")
GROUPS = (Group(LANE_A, 2, "till/lane-a"), Group(LANE_B, 3, "till/lane-b"))
NAMES = "abcdefgh"
REST = {UpdateState.VERIFIED, UpdateState.COMMITTED, UpdateState.ROLLED_BACK}


@dataclass
class Till:
    """A device; ``words`` are outcomes that have not reached the hub."""

    state: UpdateState = UpdateState.VERIFIED
    attempt: int = 1
    sequence: int = 0
    is_powered: bool = True
    is_told_back: bool = False
    words: list[Word] = field(default_factory=list)


class Store:
    """One hub, eight tills, two groups that share a till, one wave."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.now = START
        self.tills = {name: Till() for name in NAMES}
        self.slots: dict[str, Slot] = {}
        self.words: dict[tuple[str, str], Word] = {}
        self.seen: dict[str, tuple[UpdateState, int, datetime]] = {}
        self.present: set[str] = set()
        self.wishes: dict[str, RollbackWish] = {}
        self.taken = Counter[str]()

    def is_up(self, name: str) -> bool:
        till = self.tills[name]
        return till.is_powered and name in self.present and till.state in REST

    def view(self) -> HubView:
        devices = {
            name: DeviceView(
                name, state, "w", attempt, at, at, START if name in self.present else None, name in self.present
            )
            for name, (state, attempt, at) in self.seen.items()
        }
        wave = WaveView("w", True, frozenset(NAMES), LATER, 4, TRIAL_S, GROUPS)
        return HubView(
            now=self.now,
            timing=Timing(LEASE_S, WATCHDOG_S, witness_s=1),
            incarnation="i",
            incarnation_since=START - timedelta(days=1),
            default_limit=4,
            waves=(wave,),
            devices=devices,
            permits={("w", name): PermitView(99, LATER, "i") for name in NAMES},
            slots=dict(self.slots),
            words=dict(self.words),
            rollbacks=tuple(self.wishes.values()),
        )

    def schedule(self, _: str) -> None:
        """The hub decides; each device that it takes down is checked against the truth."""
        decision = decide(self.view())
        for slot in decision.ended:
            del self.slots[slot.device]
        for one in decision.inferred:
            self.words["w", one.device] = Word(one.kind, one.attempt, one.sequence, False, self.now)
        downed = [(slot, SlotUse.ROLLBACK) for _, slot in decision.relayed if slot]
        for slot, use in [*downed, *((slot, SlotUse.SWAP) for slot in decision.granted)]:
            self.check(slot.device, use)
            self.slots[slot.device] = slot
            self.taken[use.value] += 1
            if use is SlotUse.ROLLBACK:
                self.wishes.pop(slot.device)
                self.tills[slot.device].is_told_back = True

    def check(self, name: str, use: SlotUse) -> None:
        for group in GROUPS:
            members = group.members or frozenset()
            if name not in members or not self.is_up(name):
                continue
            others = members - {name}
            assert sum(map(self.is_up, others - self.slots.keys())) >= group.min_up, (name, use)
            assert not others & self.slots.keys(), "one after the other"
            if use is SlotUse.SWAP:
                owing = [o for o in others if self.tills[o].words and self.tills[o].state is not UpdateState.VERIFIED]
                assert not owing, "the last one's word is not here"

    # -- what happens -----------------------------------------------------------------------------------------------

    def say(self, name: str) -> None:
        till = self.tills[name]
        if till.is_powered and till.state is not UpdateState.TRIAL:
            self.present.add(name)
            self.seen[name] = (till.state, till.attempt, self.now)

    def report(self, name: str) -> None:
        till = self.tills[name]
        if name in self.present:
            for word in till.words:
                self.words["w", name] = word
            till.words.clear()

    def leave(self, name: str) -> None:
        self.present.discard(name)

    def die(self, name: str) -> None:
        self.tills[name].is_powered = False
        self.present.discard(name)

    def power(self, name: str) -> None:
        self.tills[name].is_powered = True

    def arm(self, name: str) -> None:
        till, slot = self.tills[name], self.slots.get(name)
        is_leased = slot is not None and slot.use is SlotUse.SWAP and self.now < slot.expires_at
        if is_leased and till.is_powered and till.state is UpdateState.VERIFIED:
            till.state = UpdateState.TRIAL
            self.present.discard(name)
        if till.is_told_back and till.is_powered:
            till.is_told_back = False
            self.end(name, OutcomeKind.ROLLED_BACK, UpdateState.ROLLED_BACK)

    def end(self, name: str, kind: OutcomeKind, state: UpdateState) -> None:
        till = self.tills[name]
        till.sequence += 1
        till.words.append(Word(kind, till.attempt, till.sequence, by_device=True, received_at=self.now))
        till.state = state
        till.attempt += kind is OutcomeKind.INCONCLUSIVE

    def update(self, name: str) -> None:
        if self.tills[name].state is UpdateState.TRIAL and self.tills[name].is_powered:
            self.end(name, OutcomeKind.UPDATED, UpdateState.COMMITTED)

    def fall_back(self, name: str) -> None:
        if self.tills[name].state is UpdateState.TRIAL and self.tills[name].is_powered:
            kind = self.rng.choice((OutcomeKind.ROLLED_BACK, OutcomeKind.INCONCLUSIVE))
            state = UpdateState.VERIFIED if kind is OutcomeKind.INCONCLUSIVE else UpdateState.ROLLED_BACK
            self.end(name, kind, state)

    def ask_back(self, name: str) -> None:
        if self.tills[name].state is UpdateState.COMMITTED and name not in self.slots:
            self.wishes[name] = RollbackWish(f"i-{name}", name, "w")

    def crash(self, _: str) -> None:
        self.present.clear()

    def wait(self, _: str) -> None:
        self.now += timedelta(seconds=self.rng.choice((1, 3, 11, 41)))

    def everybody(self, name: str) -> None:
        for one in NAMES:
            self.say(one)
            if self.rng.random() < 0.8:
                self.report(one)
        self.schedule(name)

    @property
    def open(self) -> list[str]:
        ended = {OutcomeKind.UPDATED, OutcomeKind.ROLLED_BACK}
        return [name for name in NAMES if (w := self.words.get(("w", name))) is None or w.kind not in ended]


WEIGHTS: dict[Callable[[Store, str], None], int] = {
    Store.schedule: 6, Store.everybody: 4, Store.say: 3, Store.report: 3, Store.leave: 1, Store.die: 1, Store.power: 2,
    Store.arm: 5, Store.update: 4, Store.fall_back: 1, Store.ask_back: 4, Store.crash: 1, Store.wait: 3,
}  # fmt: skip


def night(seed: int, steps: int = 120) -> Store:
    rng = Random(seed)
    store = Store(rng)
    store.everybody("a")
    for step in rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps):
        step(store, rng.choice(NAMES))
    return store


def test_the_hub_takes_nobody_down_below_a_floor() -> None:
    taken = Counter[str]()
    for seed in range(300):
        taken += night(seed).taken
    assert taken["swap"] > 1000, "nights in which nothing swaps prove nothing"
    assert taken["rollback"] > 50, taken


@pytest.mark.parametrize("seed", range(20))
def test_once_all_are_healthy_every_device_has_its_turn(seed: int) -> None:
    """No starvation: faults stop, everybody has power and talks, and the wave ends within two rounds a device."""
    store = night(seed)
    for _ in range(8 * len(NAMES)):
        for name in NAMES:
            store.power(name)
            store.arm(name)
            store.update(name)
            store.say(name)
            store.report(name)
        store.schedule("a")
        store.now += timedelta(seconds=5)
    assert store.open == []
    assert not store.wishes
