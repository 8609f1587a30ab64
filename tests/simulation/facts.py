"""What is really so: an observer beside the nodes, which asks nobody and is believed by nobody but the checkers.

The harness calls these methods where the world changes: a try-once set, an outcome persisted, a permit signed, a wave
halted. ``Facts`` keeps what the checkers look at, and hands each change to them (``tests/simulation/checkers.py``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from control.permits import outstanding
from tests.simulation.engine import EPOCH
from tests.simulation.hubs import STORE_CONFIG
from wavemesh.trust.statements import OutcomeKind, UpdateState

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from device.progress import Persist, Progress
    from tests.simulation.checkers import Checkers
    from tests.simulation.checks_of_words import Words
    from tests.simulation.devices import DeviceNode
    from tests.simulation.hubs import StoreHub
    from tests.simulation.rows import Wave
    from wavemesh.trust.statements import Permit


@dataclass(frozen=True, slots=True)
class Quality:
    """How good an image really is."""

    starts_agent: bool = True
    passes_probes: bool = True
    has_network: bool = True

    @property
    def is_good(self) -> bool:
        return self.starts_agent and self.passes_probes and self.has_network


GOOD = Quality()


@dataclass(frozen=True, slots=True)
class Swap:
    """One device between ARM and outcome, and the hub that let it."""

    device: str
    hardware: int
    hub: StoreHub
    wave_id: str
    attempt: int
    until: datetime
    """When a hub may take it for over without a word: its lease, its trial and the watchdog's time have passed."""


@dataclass(slots=True)
class Halt:
    """A halt at control: who could still swap when it was said, by permits outstanding or written off."""

    at: float
    exposed: frozenset[str]
    swapped: set[str] = field(default_factory=set)


def maxima_of(progress: Progress) -> datetime:
    """By the hub's rule: lease + trial + watchdog."""
    assert progress.target is not None
    assert progress.lease_expires_at is not None
    trial_s = progress.target.rules.rollback_on_health_loss_s + STORE_CONFIG.trial_allowance_s
    return progress.lease_expires_at + timedelta(seconds=trial_s + STORE_CONFIG.watchdog_s)


class Facts:
    """Ground truth."""

    def __init__(self) -> None:
        self.checkers: Checkers | None = None
        self.words: Words | None = None
        self.world: Any = None
        self.qualities: dict[str, Quality] = {}
        self.inside: dict[int, Swap] = {}
        self.burned: set[tuple[str, int, str, int]] = set()
        self.permits: dict[tuple[str, str], list[Permit]] = {}
        self.spent: set[tuple[str, str]] = set()
        self.halts: dict[str, Halt] = {}
        self.blamed: set[str] = set()
        """Devices that did something of their own: they died, or were rolled back by hand."""
        self.gone: set[str] = set()
        """Devices that left, whether another came in their place or not: nobody repeats what they said."""
        self.unreached: set[tuple[str, str]] = set()
        """(wave, device) whose trial had no way to its hub, though its image is good."""
        self.forgetful: set[str] = set()
        """Stores whose hub lost its disk, got an older one, or was copied."""
        self.stopped: set[tuple[int, str]] = set()
        """Devices that said of a wave that it is halted."""
        self.closed: set[str] = set()
        """Waves on which control said its last word, whether it remembers that or not."""
        self.excused: Counter[str] = Counter()
        """What the product's rules allow and nobody wants, by kind."""
        self.failures: list[str] = []
        self.control_clock: Any = None
        self.bad_devices: set[str] = set()
        """Devices on which every image is bad, whatever its quality."""

    # -- asked by the harness -----------------------------------------------------------------------------------------

    def quality(self, node: DeviceNode) -> Quality:
        """What the image on the running slot is worth."""
        label = node.slots.label(node.record.boot.slot)
        return GOOD if label is None else self.qualities.get(label.firmware.sha256, GOOD)

    def control_time(self) -> datetime:
        """The time that control signs."""
        return EPOCH if self.control_clock is None else self.control_clock.now()

    # -- told by the harness ------------------------------------------------------------------------------------------

    def fail(self, requirement: str, what: str) -> None:
        """An invariant does not hold."""
        text = f"{requirement}: {what}"
        if text not in self.failures:
            self.failures.append(text)
            self.world.note("CHECKER", "violated", text)

    def excuse(self, what: str) -> None:
        """Something happened that the rules allow."""
        self.excused[what] += 1
        self.world.note("CHECKER", "excused", what)

    def violation(self, path: str, why: str) -> None:
        """A node's machine called its honest peer's frame a violation."""
        self.fail("M2", f"{path}: {why}")

    def booted(self, node: DeviceNode) -> None:
        """A board boots a slot."""
        if node.slots.label(node.record.boot.slot) is None:
            self.fail("D9", f"{node.path} boots slot {node.record.boot.slot.value}, which holds nothing whole")

    def armed(self, node: DeviceNode) -> None:
        """Try-once is set: of a swap, or of a rollback after the commit."""
        progress = node.progress
        if progress.state is not UpdateState.ARMED:
            return
        until = maxima_of(progress)
        swap = Swap(node.path, node.hardware, node.hub, progress.wave_id, progress.attempt, until)
        if self.checkers is not None:
            self.checkers.on_arm(node, swap)
        if self.words is not None:
            self.words.on_arm(node)
        self.inside[node.hardware] = swap
        self.burned.add((node.path, node.hardware, progress.wave_id, progress.attempt))

    def persisted(self, node: DeviceNode, words: Persist) -> None:
        """Progress is durable; with an outcome the swap is over."""
        if words.outcome is not None and words.outcome.gate == "halted":
            self.stopped.add((node.hardware, node.progress.wave_id))
        swap = self.inside.get(node.hardware)
        if swap is not None and words.outcome is not None and words.outcome.kind is not OutcomeKind.REFUSED:
            del self.inside[node.hardware]

    def healthy(self, node: DeviceNode) -> None:
        """A trial passed."""
        if not self.quality(node).is_good:
            self.fail("D4", f"{node.path} found a bad image healthy")
        if self.checkers is not None:
            self.checkers.on_healthy(node)

    def decided(self, hub: StoreHub, decision: Any) -> None:
        """A hub persisted a decision; what it gave up on is outside any swap of its own."""
        now = hub.clock.now()
        for slot in decision.ended:
            for hardware, swap in list(self.inside.items()):
                if swap.device == slot.device and swap.hub is hub and now >= swap.until:
                    del self.inside[hardware]
        if self.checkers is not None:
            self.checkers.on_decision(hub, decision)
        if self.words is not None:
            self.words.on_decision(hub, decision)

    def withdrawn_unheard(self, path: str, orders: Sequence[str]) -> None:
        """M3: a hub that has heard nothing takes no order from a device: its emptiness is no word of control."""
        if orders:
            self.fail("M3", f"{path} loses the order {orders[0]} to a hub that was never settled")

    def permit_signed(self, permit: Permit) -> None:
        """Control signed a permit."""
        if self.words is not None:
            self.words.permit_signed(permit)
        self.permits.setdefault((permit.wave_id, permit.device), []).append(permit)
        if permit.wave_id in self.halts:
            self.fail("P6", f"a permit of {permit.device} was signed after the halt of wave {permit.wave_id}")

    def written_off(self, wave_id: str, device: str) -> None:
        """A permit counts as spent."""
        self.spent.add((wave_id, device))

    def halted(self, wave: Wave, *, is_by_itself: bool) -> None:
        """Control halted a wave."""
        exposed = {device for store in wave.targets for device in outstanding(wave.share(store))}
        exposed |= {device for wave_id, device in self.spent if wave_id == wave.wave_id}
        self.halts[wave.wave_id] = Halt(self.world.now, frozenset(exposed))
        if is_by_itself and self.checkers is not None:
            self.checkers.on_halt(wave)
        if is_by_itself and self.words is not None:
            self.words.on_halt(wave)

    def forgot(self, waves: Iterable[Wave]) -> None:
        """Control was restored, and does not know that these were halted, if they were: it may permit them again."""
        forgotten = tuple(waves)
        for wave in forgotten:
            self.halts.pop(wave.wave_id, None)
        if self.words is not None:
            self.words.forgot(forgotten)

    def closing(self, wave: Wave) -> None:
        """Control is about to say its last word on a wave."""
        if self.checkers is not None:
            self.checkers.on_close(wave)
        if self.words is not None:
            self.words.closing(wave)
