"""H6 as a property: whatever is lost, delayed, killed or restarted, never more devices inside than the limit.

The model is the store's floor: devices that arm under any lease that ever reached them, in any order and as late as the
lease allows, hubs that crash between two messages, words that arrive late or never. Only what the hub made durable
survives its crash. The truth checked is what the devices do, not what the hub believes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from storehub.swaps import DeviceView, HubView, PermitView, Slot, Timing, WaveView, Word, decide
from wavemesh.trust.statements import OutcomeKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2026, 3, 1, tzinfo=UTC)
LEASE_S, TRIAL_S, WATCHDOG_S = 10, 20, 10
LIMIT = 2
NAMES = ("a", "b", "c", "d")


@dataclass
class Device:
    """A device; ``mail`` are leases on their way to it, ``words`` outcomes on their way to the hub."""

    attempt: int = 1
    armed_at: datetime | None = None
    is_done: bool = False
    mail: list[Slot] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    sequence: int = 0
    is_wavering: bool = False

    @property
    def is_inside(self) -> bool:
        return self.armed_at is not None

    def state(self) -> UpdateState:
        if self.is_done:
            return UpdateState.COMMITTED
        if self.is_inside:
            return UpdateState.TRIAL
        return UpdateState.REFUSED if self.is_wavering else UpdateState.VERIFIED


class Store:
    """One hub, five devices, one wave."""

    def __init__(self) -> None:
        self.now = START
        self.devices = {name: Device() for name in NAMES}
        # Durable at the hub:
        self.slots: dict[str, Slot] = {}
        self.words: dict[tuple[str, str], Word] = {}
        self.seen: dict[str, DeviceView] = {}
        # In the hub's memory only:
        self.present: dict[str, datetime] = {}
        self.heard: set[str] = set()

    def view(self) -> HubView:
        devices = {
            name: DeviceView(
                name,
                seen.state,
                seen.wave_id,
                seen.attempt,
                seen.said_at,
                seen.seen_at,
                self.present.get(name),
                heard_in_session=name in self.heard,
            )
            for name, seen in self.seen.items()
        }
        later = START + timedelta(days=9)
        return HubView(
            now=self.now,
            timing=Timing(LEASE_S, WATCHDOG_S, witness_s=1),
            incarnation="i",
            incarnation_since=START - timedelta(days=1),
            default_limit=5,
            waves=(
                WaveView(
                    "w",
                    leasable=True,
                    devices=frozenset(NAMES),
                    expires_at=later,
                    max_concurrent_swaps=LIMIT,
                    trial_s=TRIAL_S,
                ),
            ),
            devices=devices,
            permits={("w", name): PermitView(3, later, "i") for name in NAMES},
            slots=dict(self.slots),
            words=dict(self.words),
        )

    # -- the hub ----------------------------------------------------------------------------------------------------

    def schedule(self, *, is_sent: bool) -> None:
        """The hub decides and persists; it may die before anything leaves, and serve the leases later."""
        decision = decide(self.view())
        for slot in decision.ended:
            del self.slots[slot.device]
        for found in decision.inferred:
            word = Word(found.kind, found.attempt, found.sequence, by_device=False, received_at=self.now)
            self.words[found.wave_id, found.device] = word
        for slot in decision.granted:
            self.slots[slot.device] = slot
        if is_sent:
            self.serve()

    def schedule_and_die(self) -> None:
        self.schedule(is_sent=False)
        self.crash()

    def serve(self) -> None:
        """Desired state reaches the devices that are connected: every lease that is durable."""
        for name, slot in self.slots.items():
            if name in self.present:
                self.devices[name].mail.append(slot)

    def crash(self) -> None:
        """The hub's process dies; sessions and memory are gone, what is durable stays."""
        self.present.clear()
        self.heard.clear()

    # -- devices ----------------------------------------------------------------------------------------------------

    def say(self, name: str) -> None:
        """A device that is not rebooting connects, if it must, and says its state."""
        device = self.devices[name]
        self.present.setdefault(name, self.now)
        self.heard.add(name)
        self.seen[name] = DeviceView(
            name, device.state(), "w", device.attempt, self.now, self.now, self.now, heard_in_session=True
        )

    def everybody_says(self) -> None:
        for name in NAMES:
            self.say(name)

    def waver(self, name: str) -> None:
        """A gate refuses, or passes again. The lease, if one came, is not thrown away."""
        self.devices[name].is_wavering ^= True
        self.say(name)

    def arm(self, name: str) -> None:
        """A device that holds a lease for its next attempt burns the attempt and reboots; its session ends."""
        device = self.devices[name]
        usable = [x for x in device.mail if x.attempt == device.attempt and self.now < x.expires_at]
        if usable and not device.is_inside and not device.is_done:
            device.armed_at = self.now
            self.present.pop(name, None)
            self.heard.discard(name)

    def everybody_arms(self) -> None:
        for name in NAMES:
            self.arm(name)

    def finish(self, name: str, kind: OutcomeKind) -> None:
        """The trial ends; the outcome is durable on the device and on its way."""
        device = self.devices[name]
        if device.is_inside:
            device.sequence += 1
            device.words.append(Word(kind, device.attempt, device.sequence, by_device=True, received_at=self.now))
            device.armed_at = None
            device.is_done = kind is OutcomeKind.UPDATED
            device.attempt += kind is OutcomeKind.INCONCLUSIVE

    def report(self, name: str) -> None:
        """Outcomes reach the hub, in order."""
        device = self.devices[name]
        if name in self.present:
            for word in device.words:
                held = self.words.get(("w", name))
                rank = (word.attempt, word.sequence, word.by_device)
                if held is None or rank > (held.attempt, held.sequence, held.by_device):
                    self.words["w", name] = word
            device.words.clear()

    # -- time -------------------------------------------------------------------------------------------------------

    def wait(self, seconds: int) -> None:
        """Time passes; a trial that reaches its maxima is over, because the watchdog ends it."""
        self.now += timedelta(seconds=seconds)
        longest = timedelta(seconds=TRIAL_S + WATCHDOG_S)
        for device in self.devices.values():
            if device.armed_at is not None and self.now - device.armed_at >= longest:
                device.armed_at = None
                device.attempt += 1

    def inside(self) -> list[str]:
        return [name for name, device in self.devices.items() if device.is_inside]


STEPS: dict[str, Callable[[Store, str], None]] = {
    "schedule": lambda store, _: store.schedule(is_sent=True),
    "schedule and die": lambda store, _: store.schedule_and_die(),
    "serve": lambda store, _: store.serve(),
    "crash": lambda store, _: store.crash(),
    "say": lambda store, name: store.say(name),
    "everybody says": lambda store, _: store.everybody_says(),
    "waver": lambda store, name: store.waver(name),
    "arm": lambda store, name: store.arm(name),
    "everybody arms": lambda store, _: store.everybody_arms(),
    "update": lambda store, name: store.finish(name, OutcomeKind.UPDATED),
    "fail": lambda store, name: store.finish(name, OutcomeKind.INCONCLUSIVE),
    "report": lambda store, name: store.report(name),
    "wait 1": lambda store, _: store.wait(1),
    "wait 5": lambda store, _: store.wait(5),
    "wait 11": lambda store, _: store.wait(11),
}


# Drawn more often: without them little happens between two of the rare steps.
DRAWN = [*sorted(STEPS), "schedule", "schedule", "schedule", "everybody arms", "waver", "waver", "wait 1"]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(DRAWN), st.sampled_from(NAMES)), min_size=40, max_size=80))
def test_never_more_inside_than_the_limit(steps: list[tuple[str, str]]) -> None:
    store = Store()
    store.everybody_says()
    for step, name in steps:
        STEPS[step](store, name)
        assert len(store.inside()) <= LIMIT, store.inside()


def test_the_store_is_emptied_in_the_end() -> None:
    """The limit does not starve: with everybody talking, all are updated."""
    store = Store()
    while not all(device.is_done for device in store.devices.values()):
        store.everybody_says()
        store.schedule(is_sent=True)
        store.everybody_arms()
        for name in store.inside():
            store.finish(name, OutcomeKind.UPDATED)
            store.say(name)
            store.report(name)
        assert store.now < START + timedelta(hours=1)
        store.wait(1)
    assert store.now < START + timedelta(minutes=1)
